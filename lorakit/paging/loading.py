"""A state dict, loaded by the wrapped optimizer's own `load_state_dict` a few parameters at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from lorakit.errors import ModelError
from lorakit.paging.layout import Layout, State


def load_in_slices(layout: Layout, state_dict: Mapping[str, Any], state: State) -> None:
    """Load a state dict; never more of it than a slice is near beside the pages.

    Raises: what the wrapped optimizer raises, which keeps its groups then; ModelError if the state dict is of an
    optimizer that keeps nothing of what this one keeps, as `state` says it.
    """
    optimizer = layout.optimizer
    groups, saved = optimizer.param_groups, state_dict["param_groups"]
    before = optimizer.state
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in saved]:
        # whose words they are: it refuses this
        optimizer.load_state_dict(dict(state_dict))
    keys = {
        parameter: key
        for group, other in zip(groups, saved, strict=True)
        for parameter, key in zip(group["params"], other["params"], strict=True)
    }
    for parameter, key in keys.items():
        _check_kind(state_dict["state"].get(key, {}), state(parameter), type(optimizer).__name__)
    loaded: defaultdict[Any, Any] = defaultdict(dict)
    try:
        for pieces in layout.slices(layout.pieces) or [()]:
            wanted = {piece.parameter for piece in pieces}
            optimizer.state = defaultdict(dict)
            optimizer.param_groups = [{**group, "params": _of(group["params"], wanted)} for group in groups]
            optimizer.load_state_dict(_part(state_dict, {key for one, key in keys.items() if one in wanted}, keys))
            held = [piece for piece in pieces if piece.parameter in optimizer.state]
            loaded.update(optimizer.state)
            optimizer.state = loaded
            layout.bring(held)
            layout.adopt(held)
    except BaseException:
        optimizer.state, optimizer.param_groups = before, groups
        raise
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group["params"] = own["params"]


def _check_kind(found: Mapping[str, Any], wanted: Mapping[str, Any], name: str) -> None:
    theirs = list(_names(found))
    if theirs and wanted and not set(theirs) & set(wanted):
        raise ModelError(
            f"this state dict is of another optimizer: it keeps {', '.join(theirs)} for a parameter, "
            f"and {name} {', '.join(wanted)}"
        )


def _names(state: Mapping[str, Any]) -> Iterator[str]:
    """Yield what tensors are called in a state, or in the dicts in it, where bitsandbytes puts them."""
    for name, value in state.items():
        if isinstance(value, Tensor):
            yield name
        elif isinstance(value, dict):
            yield from _names(value)


def _of(parameters: list[nn.Parameter], wanted: set[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter in wanted]


def _part(state_dict: Mapping[str, Any], wanted: set[Any], keys: Mapping[nn.Parameter, Any]) -> dict[str, Any]:
    """Return the state dict of an optimizer over these parameters alone, and whatever belongs to none."""
    known = set(keys.values())
    return {
        **state_dict,
        "state": {key: value for key, value in state_dict["state"].items() if key in wanted or key not in known},
        "param_groups": [
            {**group, "params": [key for key in group["params"] if key in wanted]}
            for group in state_dict["param_groups"]
        ],
    }
