"""How PEFT names tensors in an adapter file, and where the same tensors live in a model that lorakit adapted."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from lorakit.hooks.manager import Plugins
from lorakit.planning.plan import Plan

PREFIX = "base_model.model."


def adapter_tensors(model: nn.Module, plan: Plan, plugins: Plugins) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (name in the file, name in the model, tensor) of everything that an adapter folder holds."""
    for entry in plan.entries:
        module = model.get_submodule(entry.path)
        if entry.adapter is not None and entry.shape is not None:
            file_names = plugins.method(entry.adapter.method).file_names(entry.shape)
            for name, file_name in file_names.items():
                yield f"{PREFIX}{entry.path}.{file_name}", f"{entry.path}.{name}", module.get_parameter(name).data
            if entry.adapter.bias_parameters:
                bias = module.get_parameter("base_layer.bias")
                yield f"{PREFIX}{entry.path}.base_layer.bias", f"{entry.path}.base_layer.bias", bias.data
        if entry.train:
            for name, parameter in module.named_parameters(recurse=False):
                yield f"{PREFIX}{entry.path}.{name}", f"{entry.path}.{name}", parameter.data
