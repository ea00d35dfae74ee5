"""How PEFT names tensors in an adapter file, and where the same tensors live in a model that lorakit adapted."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from lorakit.application.layers import adapter_path, full_parameters, is_parameter
from lorakit.application.state import NamedAdapter
from lorakit.hooks.manager import Plugins
from lorakit.planning.plan import Plan, PlanEntry

PREFIX = "base_model.model."


def adapter_tensors(model: nn.Module, adapter: NamedAdapter, plugins: Plugins) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (name in the file, name in the model, tensor) of everything that an adapter folder holds."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for entry in adapter.plan.entries:
        if entry.adapter is not None:
            module = adapter.modules[entry.path]
            inner = adapter_path(model, entry, module)
            for name, file_name in file_names(adapter.plan, entry, plugins).items():
                yield file_name, f"{inner}.{name}", module.get_parameter(name).data
        for name, parameter in full_parameters(model, entry).items():
            between = "" if entry.train else "base_layer."
            path = f"{entry.path}.{between}{name}".rstrip(".")
            yield (
                f"{PREFIX}{path}",
                names[id(parameter)],
                adapter.kept.get(f"{entry.path}.{name}".rstrip("."), parameter.data),
            )


def file_names(plan: Plan, entry: PlanEntry, plugins: Plugins) -> dict[str, str]:
    """Return the names in the file of an adapter's parameters, by their own.

    PEFT wraps a module once for each of its parameters that are adapted, the last one outermost, and names the
    adapters of the inner ones behind so many `base_layer`s.
    """
    assert entry.adapter is not None and entry.shape is not None
    names = plugins.method(entry.adapter.method).file_names(entry.shape)
    path = entry.path
    if is_parameter(entry):
        path = path.rpartition(".")[0]
        beside = [
            one.path
            for one in plan.entries
            if one.adapter and one.shape and one.shape.is_parameter and one.path.rpartition(".")[0] == path
        ]
        path += ".base_layer" * (len(beside) - 1 - beside.index(entry.path))
    return {name: f"{PREFIX}{path}.{file_name}" for name, file_name in names.items()}
