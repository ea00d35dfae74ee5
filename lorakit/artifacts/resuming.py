"""Go on with an adapter from where a checkpoint of the same plan left it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from lorakit.application.sharding import fill
from lorakit.application.state import Adapted
from lorakit.artifacts.loading import planned_files
from lorakit.artifacts.peft_names import adapter_tensors
from lorakit.artifacts.reading import read_plan
from lorakit.errors import AdapterError
from lorakit.planning.difference import difference
from lorakit.planning.plan import Plan

# what may be another when a run goes on: nothing of it is in what the model computes
FREE = {"lr", "lr_ratio", "paged"}


def resume(model: nn.Module, state: Adapted, name: str, folder: Path) -> None:
    """Copy a checkpoint's tensors into the adapter that it is of, bit for bit.

    Raises: AdapterError naming the first thing in which their plans differ; nothing is changed then.
    """
    adapter = state.get(name)
    saved = read_plan(folder)
    if saved is None:
        raise AdapterError(f"{folder} has no plan.json: what it was trained as cannot be held against `{name}`")
    if found := first_difference(saved, adapter.plan):
        raise AdapterError(
            f"{folder} is of another run than `{name}`: {found}; write the spec as it was then, or begin anew"
        )
    files, _ = planned_files(folder, state.inventory, model, state.plugins)
    with torch.no_grad():
        for one in adapter_tensors(model, adapter):
            fill(one.tensor, files.tensors[one.file_name])


def first_difference(before: Plan, after: Plan) -> str:
    """Return in what two plans of a model compute something else first, in words; nothing if they do not."""
    for change in difference(before, after).changes:
        if change.kind != "change":
            return f"`{change.path}` is decided by {'it' if change.kind == 'remove' else 'the other'} alone"
        for name, was, will in change.fields:
            if name not in FREE:
                return f"`{change.path}` had {f'{name} {was}' if was else f'no {name}'}, and has {will or 'none'} now"
    return ""
