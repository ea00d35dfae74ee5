"""How PEFT names tensors in an adapter file, and where the same tensors live in a model that lorakit adapted."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from lorakit.planning.plan import Plan

PREFIX = "base_model.model."


def adapter_tensors(model: nn.Module, plan: Plan) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (name in the file, name in the model, tensor) of everything that an adapter folder holds."""
    for entry in plan.entries:
        module = model.get_submodule(entry.path)
        if entry.adapter is not None:
            for name, parameter in module.named_parameters():
                if not name.startswith("base_layer."):
                    yield f"{PREFIX}{entry.path}.{name}.weight", f"{entry.path}.{name}", parameter.data
            if entry.adapter.bias_parameters:
                bias = module.get_parameter("base_layer.bias")
                yield f"{PREFIX}{entry.path}.base_layer.bias", f"{entry.path}.base_layer.bias", bias.data
        if entry.train:
            for name, parameter in module.named_parameters(recurse=False):
                yield f"{PREFIX}{entry.path}.{name}", f"{entry.path}.{name}", parameter.data
