"""`@linear @attention @mlp @experts @head @embedding @norm`: roles found from structure, not from a table of names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from lorakit.hooks.protocols import Role
from lorakit.hooks.specs import hookimpl
from lorakit.planning.place import Place

if TYPE_CHECKING:
    from lorakit.planning.inventory import Inventory, ModuleInfo


class StructureRole(NamedTuple):
    """A role given by a function of the inventory."""

    name: str
    summary: str
    find: Callable[[Inventory], Iterable[str]]

    def select(self, inventory: Inventory) -> frozenset[str]:
        """Return the paths of the modules that play this role."""
        return frozenset(self.find(inventory))


def head(inventory: Inventory) -> Iterable[str]:
    """What the model calls its output embeddings, or the Linear-like layers outside its base model."""
    return inventory.head_paths


def linear(inventory: Inventory) -> Iterable[str]:
    """Every Linear-like module but the output head."""
    heads = set(inventory.head_paths)
    return (
        path
        for path, module in inventory.modules.items()
        if module.shape is not None and module.shape.is_linear and path not in heads
    )


def attention(inventory: Inventory) -> Iterable[str]:
    """The Linear-like modules directly inside an attention module."""
    return (path for path in linear(inventory) if _attention_above(inventory, path))


def mlp(inventory: Inventory) -> Iterable[str]:
    """The layers of a block's feed-forward part, experts included: those of a block that are not attention.

    A block is a numbered module that holds attention, or a numbered sibling of one; so routers count, embeddings and
    heads do not. What lies under a module that holds a convolution is a mixer of a recurrent model.
    """
    holders = {Place(block).holder for path in attention(inventory) if (block := _block_above(path)) is not None}
    return (
        path
        for path in (*linear(inventory), *experts(inventory))
        if not _attention_above(inventory, path)
        and (block := _block_in(path, holders)) is not None
        and not _mixer_above(inventory, path, block)
    )


def embedding(inventory: Inventory) -> Iterable[str]:
    """Modules that look up rows of a matrix, but for the positions that an attention looks up inside itself."""
    return (
        path
        for path, module in inventory.modules.items()
        if "Embedding" in module.bases and not _attention_above(inventory, path)
    )


def experts(inventory: Inventory) -> Iterable[str]:
    """The stacks of matrices that a mixture of experts holds as one parameter each."""
    return (
        path
        for path, module in inventory.modules.items()
        if module.shape is not None and module.shape.is_parameter and not module.shape.outright
    )


def norm(inventory: Inventory) -> Iterable[str]:
    """Modules without children that hold a weight, perhaps a bias, and whose class calls itself a norm."""
    return (path for path, module in inventory.modules.items() if _is_norm(module))


def _is_norm(module: ModuleInfo) -> bool:
    return (
        not module.holds_modules
        and bool(module.parameters)
        and {parameter.name for parameter in module.parameters} <= {"weight", "bias"}
        and module.shape is None
        and any("norm" in base.lower() for base in module.bases)
    )


def _attention_above(inventory: Inventory, path: str) -> bool:
    """Whether a module between this one and its block is attention by its class (every transformers class says so)."""
    block = _block_above(path) or ""
    parent = Place(path).holder
    while parent and parent != block:
        if any("attention" in base.lower() for base in inventory.modules[parent].bases):
            return True
        parent = Place(parent).holder
    return False


def _block_above(path: str) -> str | None:
    """Return the innermost numbered module above a path, or None."""
    segments = path.split(".")[:-1]
    while segments and not segments[-1].isdigit():
        segments.pop()
    return ".".join(segments) or None


def _block_in(path: str, holders: set[str]) -> str | None:
    """Return the module above a path that is a numbered child of one of these holders, or None."""
    segments = path.split(".")
    for length in range(1, len(segments)):
        if segments[length - 1].isdigit() and ".".join(segments[: length - 1]) in holders:
            return ".".join(segments[:length])
    return None


def _mixer_above(inventory: Inventory, path: str, block: str) -> bool:
    """Whether a module between this one and its block holds a convolution beside it."""
    parent = Place(path).holder
    while parent and parent != block:
        children = inventory.children.get(parent, ())
        if any((shape := inventory.modules[child].shape) and shape.kernel for child in children):
            return True
        parent = Place(parent).holder
    return False


@hookimpl
def lorakit_roles() -> list[Role]:
    return [
        StructureRole(role.__name__, (role.__doc__ or "").partition("\n")[0], role)
        for role in (linear, attention, mlp, experts, embedding, norm, head)
    ]
