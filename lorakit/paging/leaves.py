"""The tensors in what an optimizer keeps for a parameter, wherever they lie in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.errors import ModelError

# the keys that lead to a tensor: of a state's dict, and of the dicts and lists in it
Path = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Leaf:
    """One tensor, and the dict or list that holds it under a key."""

    path: Path
    holder: Any
    key: Any
    tensor: Tensor


def leaves(state: Any, device: torch.device, path: Path = ()) -> Iterator[Leaf]:
    """Yield the tensors of a state that lie on a device.

    Raises: ModelError for a tensor that cannot be a view into a page: one of a class of its own, or in a tuple.
    """
    items = list(state.items()) if isinstance(state, dict) else list(enumerate(state))
    for key, value in items:
        at = (*path, key)
        if isinstance(value, Tensor):
            if value.device != device:
                continue
            if type(value) not in (Tensor, nn.Parameter) or value.layout is not torch.strided:
                raise ModelError(f"paged: the optimizer's `{dotted(at)}` is a {kind(value)}, which no page can hold")
            if isinstance(state, tuple):
                raise ModelError(f"paged: the optimizer's `{dotted(at)}` lies in a tuple, which cannot be changed")
            yield Leaf(at, state, key, value)
        elif isinstance(value, dict | list | tuple):
            yield from leaves(value, device, at)


def copied(value: Any, device: torch.device | None = None) -> Any:
    """Return a state, or a part of it, with tensors of its own; on `device`, if one is given."""
    if isinstance(value, Tensor):
        return value.detach().to(device or value.device, copy=True)
    if isinstance(value, dict):
        return {key: copied(one, device) for key, one in value.items()}
    if isinstance(value, list | tuple):
        made = [copied(one, device) for one in value]
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    return value


def dotted(path: Path) -> str:
    """Return a path in words: `exp_avg`, `factors.0`."""
    return ".".join(map(str, path))


def kind(tensor: Tensor) -> str:
    """Return what a tensor is, where it is not a plain one."""
    return type(tensor).__name__ if type(tensor) is not Tensor else str(tensor.layout).removeprefix("torch.")
