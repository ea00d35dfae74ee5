"""A checkpoint of the loop for PyTorch models: adapter, optimizer, generators, step, and what was logged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorakit.application.state import state_of
from lorakit.artifacts.adapter_folder import WEIGHTS, write_adapter_files
from lorakit.artifacts.loading import restore_tensors
from lorakit.trainers.checkpoints import STATE, await_all
from lorakit.trainers.generators import generator_files, read_generators, save_generators
from lorakit.trainers.settings import Record

OPTIMIZER = "optimizer.safetensors"
# what stands in JSON for a tensor within a dict or a list, which lies in the file under this name
TENSOR = "tensor in the file"
# between the key of such a value and the ways into it
INSIDE = "/"


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run begins: after this step, with the generators as they stood, and what was logged before."""

    step: int = 0
    drawn: Mapping[str, Any] | None = None
    history: Sequence[Record] = ()


def write_checkpoint(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    history: Sequence[Record],
    folder: Path,
    *,
    rank: int = 0,
    count: int = 1,
) -> None:
    """Write adapter, optimizer state, generators, step and history into a folder.

    Of `count` processes that train together each writes its generators, and the first all else, which is the same in
    each.
    """
    save_generators(folder, rank)
    if rank:
        return
    await_all(folder, generator_files(count))
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = _kept(value)
            else:
                plain[f"{index}.{name}"] = _taken(value, f"{index}.{name}", tensors)
    groups = [{name: value for name, value in group.items() if name != "params"} for group in state["param_groups"]]
    write_adapter_files(model, folder, state_of(model).plugins)
    save_file(tensors, folder / OPTIMIZER)
    progress = {"global_step": step, "optimizer": plain, "groups": groups, "log_history": list(history)}
    (folder / STATE).write_text(json.dumps(progress), encoding="utf-8")


def read_checkpoint(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, rank: int = 0) -> Start:
    """Put a checkpoint back, and return its step, this process's generators then, and what was logged until then."""
    restore_tensors(model, load_file(folder / WEIGHTS))
    saved = json.loads((folder / STATE).read_text(encoding="utf-8"))
    values: dict[int, dict[str, Any]] = {}
    tensors = load_file(folder / OPTIMIZER)
    whole = {key: value for key, value in tensors.items() if INSIDE not in key}
    for key, value in {**whole, **saved["optimizer"]}.items():
        index, _, name = key.partition(".")
        values.setdefault(int(index), {})[name] = _given(value, tensors)
    # some optimizers count steps in their groups
    groups = [
        {**own, **kept} for own, kept in zip(optimizer.state_dict()["param_groups"], saved["groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": values, "param_groups": groups})
    return Start(int(saved["global_step"]), read_generators(folder, rank), saved.get("log_history", ()))


def _taken(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON holds it; the tensors in it go to `tensors`."""
    if isinstance(value, Tensor):
        tensors[place] = _kept(value)
        return {TENSOR: place}
    if isinstance(value, dict):
        return {key: _taken(one, f"{place}{INSIDE}{key}", tensors) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_taken(one, f"{place}{INSIDE}{index}", tensors) for index, one in enumerate(value)]
    return value


def _given(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what `_taken` was given; what was a tuple is a list."""
    if isinstance(value, dict):
        if value.keys() == {TENSOR}:
            return tensors[value[TENSOR]]
        return {key: _given(one, tensors) for key, one in value.items()}
    return [_given(one, tensors) for one in value] if isinstance(value, list) else value


def _kept(value: Tensor) -> Tensor:
    # what several share is written for each
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)
