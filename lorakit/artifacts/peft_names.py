"""How PEFT names tensors in an adapter file, and where the same tensors live in a model that lorakit adapted."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from lorakit.application.layers import adapter_at, trained_parameters
from lorakit.hooks.manager import Plugins
from lorakit.planning.plan import Plan, PlanEntry

PREFIX = "base_model.model."


def adapter_tensors(model: nn.Module, plan: Plan, plugins: Plugins) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (name in the file, name in the model, tensor) of everything that an adapter folder holds."""
    for entry in plan.entries:
        if entry.adapter is not None and entry.shape is not None:
            adapter = adapter_at(model, entry)
            inner = inner_path(entry)
            for name, file_name in file_names(plan, entry, plugins).items():
                yield file_name, f"{inner}.{name}", adapter.get_parameter(name).data
            if entry.adapter.bias_parameters:
                bias = adapter.get_parameter("base_layer.bias")
                yield f"{PREFIX}{entry.path}.base_layer.bias", f"{entry.path}.base_layer.bias", bias.data
        if entry.train:
            for name, parameter in trained_parameters(model, entry).items():
                path = f"{entry.path}.{name}".rstrip(".")
                yield f"{PREFIX}{path}", path, parameter.data


def file_names(plan: Plan, entry: PlanEntry, plugins: Plugins) -> dict[str, str]:
    """Return the names in the file of an adapter's parameters, by their own.

    PEFT wraps a module once for each of its parameters that are adapted, the last one outermost, and names the
    adapters of the inner ones behind so many `base_layer`s.
    """
    assert entry.adapter is not None and entry.shape is not None
    names = plugins.method(entry.adapter.method).file_names(entry.shape)
    path = entry.path
    if entry.shape.is_parameter:
        path = path.rpartition(".")[0]
        beside = [
            one.path
            for one in plan.entries
            if one.adapter and one.shape and one.shape.is_parameter and one.path.rpartition(".")[0] == path
        ]
        path += ".base_layer" * (len(beside) - 1 - beside.index(entry.path))
    return {name: f"{PREFIX}{path}.{file_name}" for name, file_name in names.items()}


def inner_path(entry: PlanEntry) -> str:
    """Return the path of an adapter in an adapted model."""
    if entry.shape is None or not entry.shape.is_parameter:
        return entry.path
    holder, _, name = entry.path.rpartition(".")
    return f"{holder}.parametrizations.{name}.0"
