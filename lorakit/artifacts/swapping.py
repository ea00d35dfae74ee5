"""Put a saved adapter's tensors into the place of one that is on a model, changing no module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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

    Where settings differ, the method makes its tensors fit: LoRA fills a smaller rank up with zeros, and lora_B takes
    the ratio of the scalings. Raises: AdapterError; nothing is changed then.
    """
    adapter = state.get(name)
    files, plan = planned_files(folder, state.inventory, model, plugins, allow_pickle=allow_pickle)
    if files.taken or adapter.taken:
        raise AdapterError(f"{folder} and `{name}` do not start from the same base weights: load it instead")
    theirs = {entry.path: entry for entry in plan.entries if entry.adapter or entry.is_whole}
    ours = {entry.path: entry for entry in adapter.plan.entries if entry.adapter or entry.is_whole}
    if theirs.keys() != ours.keys():
        odd = sorted(theirs.keys() ^ ours.keys())[0]
        raise AdapterError(f"{folder} and `{name}` do not adapt the same modules: `{odd}` is in one of them alone")
    values: dict[str, Tensor] = dict(files.tensors)
    names = file_names(plan)
    for path, entry in theirs.items():
        if entry.adapter is not None:
            try:
                values |= _fitted(entry, ours[path], names(entry), values, plugins)
            except ValueError as error:
                raise AdapterError(f"`{path}` of {folder} does not fit where `{name}` has its own: {error}") from error
    with torch.no_grad():
        for one in adapter_tensors(model, adapter):
            one.tensor.copy_(values[one.file_name])


def _fitted(
    theirs: PlanEntry, ours: PlanEntry, names: dict[str, str], values: dict[str, Tensor], plugins: Plugins
) -> dict[str, Tensor]:
    """Return the tensors of one module as they fit where ours are, by their file names."""
    assert theirs.adapter is not None and ours.adapter is not None and theirs.shape is not None
    method: Any = plugins.method(ours.adapter.method)
    if theirs.adapter.method != ours.adapter.method:
        raise AdapterError(
            f"`{theirs.path}` is adapted by `{theirs.adapter.method.name}` there and by `{method.name}` here"
        )
    settings, own = theirs.adapter.settings, ours.adapter.settings
    if (settings.rank, settings.factor) == (own.rank, own.factor):
        return {file_name: values[file_name] for file_name in names.values()}
    if not hasattr(method, "resized"):
        raise AdapterError(f"`{theirs.path}` has other settings there, and `{method.name}` cannot be resized")
    given = {name: values[file_name] for name, file_name in names.items()}
    made = method.resized(given, theirs.shape, settings, own)
    return {names[name]: value for name, value in made.items()}
