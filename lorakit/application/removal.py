"""Take an adapter off a model that keeps others."""

from __future__ import annotations

from torch import nn

from lorakit.application.places import (
    adapt_parameter,
    adapters_of_parameter,
    free_parameter,
    holder_of,
    replace_modules,
)
from lorakit.application.state import Adapted
from lorakit.application.switching import use
from lorakit.errors import ModelError


def remove(model: nn.Module, state: Adapted, name: str) -> None:
    """Take an adapter off; where it was in use, the others stay as they are.

    Raises: ModelError for an unknown name, or the only one.
    """
    state.check_apart()
    adapter = state.get(name)
    if len(state.named) == 1:
        raise ModelError(f"`{name}` is the only adapter: lorakit.merge folds it in, or load the model without it")
    adapter.check_removal()
    use(model, state, {one.name: one.strength for one in state.used if one is not adapter})  # type: ignore[misc]
    layers = {
        module: module.get_submodule("base_layer")
        for path, module in adapter.modules.items()
        if module._modules.get("base_layer") is not None
    }
    replace_modules(model, layers)
    for entry in adapter.plan.entries:
        if entry.is_parameter and entry.adapter is not None:
            holder, parameter = holder_of(model, entry)
            others = list(adapters_of_parameter(holder, parameter))
            free_parameter(holder, parameter)
            for other in others:
                if other is not adapter.modules[entry.path]:
                    adapt_parameter(holder, parameter, other)
    del state.named[name]
