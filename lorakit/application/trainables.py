"""What adapters train, by its path, whether or not it requires a gradient now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from lorakit.application.places import full_parameters, own_parameters
from lorakit.application.state import NamedAdapter, adapted_state
from lorakit.planning.place import Place


def trainables(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what the adapters in use of a model train; nothing for a model that is not adapted."""
    state = adapted_state(model)
    return {path: one for adapter in (state.used if state else ()) for path, one in trained_by(model, adapter)}


def trained_by(model: nn.Module, adapter: NamedAdapter) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield what one adapter of a model trains."""
    for entry in adapter.plan.entries:
        if entry.adapter is not None:
            frozen = {one.name for one in entry.adapter.parameters if not one.trains}
            for name, parameter in own_parameters(adapter.modules[entry.path], entry).items():
                if name not in frozen:
                    yield Place(entry.path).inside(name), parameter
        for name, parameter in full_parameters(model, entry).items():
            yield Place(entry.path).inside(name), parameter


def frozen_words(found: Mapping[str, nn.Parameter]) -> str:
    """Say that all of this is frozen, and what does that."""
    return (
        f"nothing trains: all {len(found)} parameters of the adapters in use, first `{next(iter(found))}`, were frozen "
        "after the model was adapted, as `requires_grad_(False)` and peft's `prepare_model_for_kbit_training` do it: "
        "call these before, or have adapters train again by `lorakit.adapters(model).use(NAME)`"
    )
