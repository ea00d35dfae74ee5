"""What is about to be saved, held against the table of its plan: a folder that is written can be loaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn

from lorakit.application.state import NamedAdapter
from lorakit.artifacts.peft_names import AdapterTensor
from lorakit.errors import ModelError
from lorakit.hooks.manager import Plugins
from lorakit.planning.entries import UnfitError, with_settings
from lorakit.planning.moving import settings_at
from lorakit.planning.plan import Plan, PlanEntry


def plan_to_save(adapter: NamedAdapter, plugins: Plugins) -> Plan:
    """Return the plan of an adapter as it is now: ranks that moved since it was applied are those of its tensors.

    Raises: ModelError naming a parameter whose shape no rank of its method gives.
    """
    entries = tuple(_as_it_is(entry, adapter, plugins) for entry in adapter.plan.entries)
    return adapter.plan if entries == adapter.plan.entries else replace(adapter.plan, entries=entries)


def check_tensors(tensors: Iterable[AdapterTensor]) -> None:
    """Raise ModelError naming a tensor that has not its planned shape, or holds NaN or infinity."""
    for one in tensors:
        if tuple(one.tensor.shape) != one.shape:
            raise ModelError(f"`{one.inner}` is {tuple(one.tensor.shape)}, and the plan says {one.shape}")
        if not bool(torch.isfinite(one.tensor).all()):
            raise ModelError(
                f"`{one.inner}` holds NaN or infinite values: this adapter is not saved; go back to a checkpoint "
                "from before, and train with a lower learning rate"
            )


def _as_it_is(entry: PlanEntry, adapter: NamedAdapter, plugins: Plugins) -> PlanEntry:
    if entry.adapter is None:
        return entry
    module = adapter.modules[entry.path]
    found = {one.name: tuple(module.get_parameter(one.name).shape) for one in entry.adapter.parameters}
    if found == {one.name: one.shape for one in entry.adapter.parameters}:
        return entry
    # a rank is the size of something; which one, the method's own table tells
    for rank in sorted({size for shape in found.values() for size in shape if size}):
        settings = settings_at(entry.adapter.settings, rank)
        scaling = _scaling(module)
        if scaling is not None and settings.alpha is not None and settings.factor:
            settings = replace(settings, alpha=settings.alpha * scaling / settings.factor)
        try:
            moved = with_settings(entry, settings, plugins)
        except UnfitError:
            continue
        if moved.adapter and {one.name: one.shape for one in moved.adapter.parameters} == found:
            return moved
    name, shape = next((one.name, found[one.name]) for one in entry.adapter.parameters if found[one.name] != one.shape)
    raise ModelError(
        f"`{name}` of `{entry.path}` is {shape}, and the plan says "
        f"{next(one.shape for one in entry.adapter.parameters if one.name == name)}: no rank of "
        f"`{entry.adapter.method.name}` gives its shapes, so what would be written could not be loaded"
    )


def _scaling(module: nn.Module) -> float | None:
    scaling = getattr(module, "scaling", None)
    return scaling if isinstance(scaling, float) else None
