"""`@linear @attention @mlp @head @embedding @norm`: roles found from a model's structure, not from a table of names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lorakit.hooks.protocols import Role
from lorakit.hooks.specs import hookimpl
from lorakit.planning.inventory import Inventory, ModuleInfo


@dataclass(frozen=True)
class StructureRole:
    """A role given by a function of the inventory."""

    name: str
    summary: str
    find: Callable[[Inventory], Iterable[str]]

    def select(self, inventory: Inventory) -> frozenset[str]:
        """Return the paths of the modules that play this role."""
        return frozenset(self.find(inventory))


def head(inventory: Inventory) -> Iterable[str]:
    """What the model itself calls its output embeddings; a plain PyTorch model has none."""
    return [inventory.output_path] if inventory.output_path else []


def linear(inventory: Inventory) -> Iterable[str]:
    """Every Linear-like module but the output head."""
    return (
        path
        for path, module in inventory.modules.items()
        if module.shape is not None and module.shape.is_linear and path != inventory.output_path
    )


def attention(inventory: Inventory) -> Iterable[str]:
    """The Linear-like modules directly inside an attention module."""
    return (path for path in linear(inventory) if _attention_above(inventory, path))


def mlp(inventory: Inventory) -> Iterable[str]:
    """The Linear-like modules of a block's feed-forward part: those of a block that are not attention.

    A block is a numbered module that holds attention; so routers and experts count, embeddings and heads do not.
    """
    blocks = {block for path in attention(inventory) if (block := _block_above(path)) is not None}
    return (
        path for path in linear(inventory) if not _attention_above(inventory, path) and any(_blocks_above(path, blocks))
    )


def embedding(inventory: Inventory) -> Iterable[str]:
    """Modules that look up rows of a matrix."""
    return (path for path, module in inventory.modules.items() if "Embedding" in module.bases)


def norm(inventory: Inventory) -> Iterable[str]:
    """Modules without children whose parameters are vectors and whose class calls itself a norm."""
    return (path for path, module in inventory.modules.items() if _is_norm(module))


def _is_norm(module: ModuleInfo) -> bool:
    return (
        not module.holds_modules
        and bool(module.parameters)
        and all(len(parameter.shape) == 1 for parameter in module.parameters)
        and any("norm" in base.lower() for base in module.bases)
    )


def _attention_above(inventory: Inventory, path: str) -> bool:
    """Whether a module between this one and its block is attention by its class (every transformers class says so)."""
    block = _block_above(path) or ""
    parent = path.rpartition(".")[0]
    while parent and parent != block:
        if any("attention" in base.lower() for base in inventory.modules[parent].bases):
            return True
        parent = parent.rpartition(".")[0]
    return False


def _block_above(path: str) -> str | None:
    """Return the innermost numbered module above a path, or None."""
    segments = path.split(".")[:-1]
    while segments and not segments[-1].isdigit():
        segments.pop()
    return ".".join(segments) or None


def _blocks_above(path: str, blocks: set[str]) -> Iterable[str]:
    segments = path.split(".")
    prefixes = (".".join(segments[:length]) for length in range(1, len(segments)))
    return (prefix for prefix in prefixes if prefix in blocks)


@hookimpl
def lorakit_roles() -> list[Role]:
    return [
        StructureRole(role.__name__, (role.__doc__ or "").partition("\n")[0], role)
        for role in (linear, attention, mlp, embedding, norm, head)
    ]
