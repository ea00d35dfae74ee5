"""Tensors taken out of nested values, and put back: what stays says where they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class _Place(tuple[Any, ...]):
    """Where a tensor was."""


def taken(value: Any, place: tuple[Any, ...], tensors: dict[Any, Tensor]) -> Any:
    """Return a value with its tensors, which are put aside, replaced by their places."""
    if isinstance(value, Tensor):
        tensors[place] = value
        return _Place(place)
    if isinstance(value, dict):
        held = {name: taken(inner, (*place, name), tensors) for name, inner in value.items()}
        return held if type(value) is dict else type(value)(**held)
    if type(value) in (list, tuple):
        return type(value)(taken(inner, (*place, index), tensors) for index, inner in enumerate(value))
    return value


def put_back(value: Any, tensors: Mapping[Any, Tensor]) -> Any:
    """Return a value with tensors in the places of those that were taken."""
    if isinstance(value, _Place):
        return tensors[tuple(value)]
    if isinstance(value, dict):
        held = {name: put_back(inner, tensors) for name, inner in value.items()}
        return held if type(value) is dict else type(value)(**held)
    if type(value) in (list, tuple):
        return type(value)(put_back(inner, tensors) for inner in value)
    return value


def is_plain(value: Any) -> bool:
    """Return whether a value is the same wherever it prints the same."""
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device)
