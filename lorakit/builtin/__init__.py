"""First-party plugins: each file registers through the hooks that any third party uses."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType


def plugins() -> dict[str, ModuleType]:
    """Return the built-in plugin modules by name. None of them imports torch when it is loaded."""
    from lorakit.application import again
    from lorakit.builtin import (
        bitsandbytes_layers,
        data_formats,
        data_shapes,
        dispatched_models,
        factory_models,
        kernels,
        linear_layers,
        other_layers,
        rwkv,
        stacked_parameters,
    )
    from lorakit.huggingface import embeddings, former_names, models, own_layers, recomputing, saving
    from lorakit.running import saved
    from lorakit.trainers import first_step, state_dicts

    modules = (
        kernels, linear_layers, other_layers, bitsandbytes_layers, stacked_parameters, rwkv, dispatched_models,
        factory_models, models, saving, embeddings, again, recomputing, own_layers, former_names, first_step,
        state_dicts, saved,
        data_formats, data_shapes,
    )  # fmt: skip
    return {**vocabulary(), **_by_name(modules)}


def vocabulary() -> dict[str, ModuleType]:
    """Return those of the built-in plugin modules that add what a spec can name."""
    from lorakit.builtin import initializers, lora, optimizers, quantizers, roles

    return _by_name((quantizers, initializers, optimizers, lora, roles))


def _by_name(modules: Iterable[ModuleType]) -> dict[str, ModuleType]:
    return {f"lorakit ({module.__name__.rpartition('.')[2]})": module for module in modules}
