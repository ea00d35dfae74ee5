"""States of adapters as earlier releases wrote them into a Trainer's checkpoint.

Then an adapter went by the folder that it was saved in, "" for the checkpoint's own, and at first a state was the
adapter's file and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from lorakit.application.sharding import fill
from lorakit.application.state import DEFAULT, adapter_of, state_of
from lorakit.artifacts.adapter_state import PLAN, START, TENSOR, State, matched, plan_tensor
from lorakit.artifacts.peft_names import PREFIX, adapter_tensors
from lorakit.errors import AdapterError, PlanError
from lorakit.planning.plan import Plan

OLD_PLAN, OLD_START = "lorakit_plan", "lorakit_start/"


def renamed(model: nn.Module, state_dict: State) -> dict[str, Any]:
    """Take out of a state what it holds by folders, and return it by the names of today; nothing if it has no plans.

    Raises: AdapterError if a plan cannot be read.
    """
    folders = [
        name.removeprefix(PREFIX).removesuffix(f"/{OLD_PLAN}") for name in state_dict if name.endswith(f"/{OLD_PLAN}")
    ]
    if not folders:
        return {}
    names = _names(model, folders)
    found: dict[str, Any] = {}
    for key in [key for key in state_dict if key.startswith(PREFIX)]:
        folder, is_own, inside = key.removeprefix(PREFIX).partition("/")
        name, value = names[folder if is_own else ""], state_dict.pop(key)
        if is_own and inside == OLD_PLAN:
            found[f"{PLAN}{name}"] = _as_now(value, name)
        elif is_own and inside.startswith(OLD_START):
            found[f"{START}{name}.{inside.removeprefix(OLD_START)}"] = value
        else:
            found[f"{TENSOR}{name}.{inside if is_own else key}"] = value
    return found


def _names(model: nn.Module, folders: Iterable[str]) -> dict[str, str]:
    """Return the adapter of each folder: one alone had the checkpoint's own, and of several `default` had it."""
    folders, used = set(folders), state_of(model).used
    alone = used[0].name if folders == {""} and len(used) == 1 else DEFAULT
    return {"": alone} | {folder: folder for folder in folders if folder}


def _as_now(value: Any, name: str) -> Any:
    try:
        return plan_tensor(Plan.from_json(bytes(value.cpu().numpy()).decode()))
    except (AttributeError, PlanError, TypeError, ValueError) as error:
        raise AdapterError(f"this checkpoint holds no plan of `{name}` that can be read: {error}") from error


def taken_as_file(model: nn.Module, state_dict: State, prefix: str) -> Mapping[str, bool] | None:
    """Copy the tensors of an adapter's file, which a state is, into the adapter in use.

    Return of each of its tensors, by name in the model, whether it was there; None if the state is no such file.
    Raises: AdapterError for another shape, ModelError if several are in use: which one a file is of, nothing tells.
    """
    for adapter in state_of(model).used:
        wanted = list(adapter_tensors(model, adapter))
        # what a view of the model calls as the file does is its own
        mine = {one.file_name for one in wanted if one.file_name != prefix + one.inner} & state_dict.keys()
        if mine:
            adapter_of(model)
            pairs = matched(wanted, state_dict)
            for name in {one.file_name for one in wanted} & state_dict.keys():
                del state_dict[name]
            with torch.no_grad():
                for tensor, value in pairs:
                    fill(tensor, value)
            filled = {id(tensor) for tensor, _ in pairs}
            return {one.inner: id(one.tensor) in filled for one in wanted}
    return None
