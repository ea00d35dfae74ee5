"""What an optimizer's step changes besides parameters and their state: values of its groups, and its own attributes.

A step on some of the parameters begins where the whole step does, so that each part of it sees the same counters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# what of an optimizer is not its own to count
ELSEWHERE = ("state", "param_groups", "defaults")


class Scene:
    """The values of groups and attributes before a step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._before = {key: _copy(value) for key, value in _values(optimizer).items()}
        self._after: dict[Key, Any] = {}

    def set(self) -> None:
        """Put the values back that stood before the step."""
        for key, now in _values(self._optimizer).items():
            where, name = key
            holder = vars(self._optimizer) if where is None else self._optimizer.param_groups[where]
            if key not in self._before:
                del holder[name]
                continue
            before = self._before[key]
            if isinstance(now, Tensor) and isinstance(before, Tensor):
                now.copy_(before)
            elif now is not before:
                holder[name] = _copy(before)

    def differing(self) -> str:
        """Return which value a part of the step left otherwise than its first part did, in words; else nothing."""
        now = {key: value for key, value in _values(self._optimizer).items() if isinstance(value, NUMBERS)}
        self._after = self._after or now
        for key, value in now.items():
            earlier = self._after.get(key, value)
            if earlier != value and not (earlier != earlier and value != value):
                return f"its `{key[1]}` is {earlier!r} by some parameters and {value!r} by others"
        return ""


# a group by its number, or None for the optimizer itself, and a name
Key = tuple[int | None, str]
NUMBERS = (bool, int, float, complex, str)
COUNTING = (*NUMBERS, tuple, Tensor, type(None))


def _values(optimizer: torch.optim.Optimizer) -> dict[Key, Any]:
    """Return whatever may count."""
    found: dict[Key, Any] = {
        (None, name): value
        for name, value in vars(optimizer).items()
        if name not in ELSEWHERE and isinstance(value, COUNTING)
    }
    for number, group in enumerate(optimizer.param_groups):
        for name, value in group.items():
            if name != "params" and isinstance(value, (*COUNTING, list, dict)):
                found[number, name] = value
    return found


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return copy.deepcopy(value) if isinstance(value, list | dict) else value


@contextmanager
def narrowed(groups: Sequence[dict[str, Any]], members: Sequence[list[nn.Parameter]]) -> Iterator[None]:
    """Let each group hold just these of its parameters."""
    whole = [group["params"] for group in groups]
    for group, some in zip(groups, members, strict=True):
        group["params"] = some
    try:
        yield
    finally:
        for group, everything in zip(groups, whole, strict=True):
            group["params"] = everything
