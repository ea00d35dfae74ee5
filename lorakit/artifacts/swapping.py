"""Put a saved adapter's tensors into the place of one that is on a model, changing no module."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lorakit.application.state import Adapted
from lorakit.artifacts.loading import planned_files
from lorakit.artifacts.peft_names import adapter_tensors, file_names
from lorakit.errors import AdapterError
from lorakit.hooks.manager import Plugins
from lorakit.planning.plan import PlanEntry


def swap(
    model: nn.Module, state: Adapted, name: str, folder: Path, plugins: Plugins, *, allow_pickle: bool = False
) -> None:
    """Copy an adapter folder's tensors into an adapter of the same modules and the same rank or a larger one.

    A smaller rank is filled up with zeros; where the folder scales otherwise, lora_B takes the ratio.
    Raises: AdapterError; nothing is changed then.
    """
    adapter = state.get(name)
    files, plan = planned_files(folder, state.inventory, plugins, allow_pickle=allow_pickle)
    theirs = {entry.path: entry for entry in plan.entries if entry.adapter or entry.train}
    ours = {entry.path: entry for entry in adapter.plan.entries if entry.adapter or entry.train}
    if theirs.keys() != ours.keys():
        odd = sorted(theirs.keys() ^ ours.keys())[0]
        raise AdapterError(f"{folder} and `{name}` do not adapt the same modules: `{odd}` is in one of them alone")
    values: dict[str, Tensor] = dict(files.tensors)
    for path, entry in theirs.items():
        if entry.adapter is not None:
            values |= _fitted(entry, ours[path], name, file_names(plan, entry, plugins), values)
    with torch.no_grad():
        for file_name, _, parameter in adapter_tensors(model, adapter, plugins):
            parameter.copy_(values[file_name])


def _fitted(
    theirs: PlanEntry, ours: PlanEntry, name: str, names: dict[str, str], values: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return lora_A and lora_B of one module, filled up to our rank and scaled as ours are, by their file names."""
    assert theirs.adapter is not None and ours.adapter is not None and theirs.shape is not None
    rank, room = theirs.adapter.rank or 0, ours.adapter.rank or 0
    if theirs.adapter.method != ours.adapter.method or set(names) != {"lora_A", "lora_B"}:
        raise AdapterError(f"`{theirs.path}` is adapted by `{theirs.adapter.method.name}`, which cannot be swapped in")
    if rank > room:
        raise AdapterError(
            f"`{theirs.path}` has rank {rank} there and `{name}` holds rank {room}: apply it with rank {rank} first"
        )
    lora_A, lora_B = values[names["lora_A"]], values[names["lora_B"]]
    ratio = theirs.adapter.factor / ours.adapter.factor
    if ratio != 1.0:
        lora_B = (lora_B.float() * ratio).to(lora_B.dtype)
    if rank < room:
        stack = theirs.shape.stack or 1
        lora_A = _filled(lora_A.unflatten(0, (stack, rank)), 1, room).flatten(0, 1)
        lora_B = _filled(lora_B.unflatten(1, (rank, stack)), 1, room).flatten(1, 2)
    return {names["lora_A"]: lora_A, names["lora_B"]: lora_B}


def _filled(tensor: Tensor, dimension: int, size: int) -> Tensor:
    """Return a tensor with zeros behind it along a dimension, so that it has this size there."""
    shape = list(tensor.shape)
    shape[dimension] = size - shape[dimension]
    return torch.cat([tensor, tensor.new_zeros(shape)], dimension)
