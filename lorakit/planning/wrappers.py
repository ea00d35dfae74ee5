"""What torch puts around a module, and what it then has between the parts of a path: a plan knows nothing of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# torch.compile, activation checkpointing, FSDP: each forwards what it has not itself to the module inside
WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})


def plain_path(path: str) -> str:
    """Return a path as it would be in a model where nothing is wrapped; `get_submodule` takes it in either."""
    if not any(wrapper in path for wrapper in WRAPPERS):
        return path
    return ".".join(segment for segment in path.split(".") if segment not in WRAPPERS)


def plain_modules(named: Iterable[tuple[str, nn.Module]]) -> dict[str, nn.Module]:
    """Return modules by their plain paths: of a wrapped module the one inside, which comes after its wrapper."""
    return {plain_path(path): module for path, module in named}
