"""Accelerate: what `save_state` writes of an adapted model is its adapter, as a state and as a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from accelerate.utils.constants import SAFE_MODEL_NAME
from safetensors import safe_open
from torch import nn

from lorakit.application.sharding import is_sharded
from lorakit.application.state import DEFAULT, adapted_in, state_of
from lorakit.artifacts.adapter_folder import save_adapter
from lorakit.artifacts.adapter_state import PLAN, State
from lorakit.artifacts.checkpoint import readable
from lorakit.artifacts.state_dict import to_adapters

if TYPE_CHECKING:
    from accelerate import Accelerator

# of a state's folder, what holds the adapter of the first adapted model
FOLDER = "adapter"
_known: WeakSet[Accelerator] = WeakSet()


def checkpoint_adapters(accelerator: Accelerator) -> None:
    """Have an Accelerator's `save_state` hold the adapters of adapted models, and `load_state` take them, bit for bit.

    The state's folder gets an adapter folder besides, `adapter`, for `lorakit.load` and PEFT; an adapter with a name is
    in `adapter-NAME`, that of a second model in `adapter_1`. What trains beside the adapters is in the state too.
    Models that are not adapted are saved as ever, and so is what Accelerate hands to FSDP and DeepSpeed. `load_state`
    refuses the state of another plan with an AdapterError that names the first difference, and still takes the states
    of whole models.
    """
    if accelerator not in _known:
        accelerator.register_save_state_pre_hook(partial(_before_save, accelerator))
        accelerator.register_load_state_pre_hook(_before_load)
        _known.add(accelerator)


def _before_save(accelerator: Accelerator, models: Sequence[nn.Module], weights: list[State], folder: str) -> None:
    # where something else writes the models, there are none
    if len(weights) != len(models):
        return
    for model, state_dict in zip(models, weights, strict=True):
        to_adapters(model, state_dict)
    adapted = [one for model in models for one in adapted_in(model).values()]
    for number, model in enumerate(adapted):
        if accelerator.is_main_process or is_sharded(model):
            _write(model, Path(folder), f"{FOLDER}_{number}" if number else FOLDER)


def _write(model: nn.Module, folder: Path, name: str) -> None:
    state: Any = state_of(model)
    for one in state.named:
        place = folder / (name if one == DEFAULT else f"{name}-{one}")
        save_adapter(model, place, state.plugins, name=one)


def _before_load(models: list[Any], folder: str) -> None:
    for number, model in enumerate(models):
        file = Path(folder) / f"{SAFE_MODEL_NAME}{f'_{number}' if number else ''}.safetensors"
        if adapted_in(model) and file.is_file() and _holds_adapters(file):
            models[number] = _Strict(model)


def _holds_adapters(file: Path) -> bool:
    with readable(file), safe_open(file, "pt") as opened:
        return any(PLAN in name for name in opened.keys())  # noqa: SIM118


class _Strict:
    """A model for safetensors' `load_model`, which wants the other names of a tie to be missing: it loads strictly."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state_dict: State, strict: bool = True) -> tuple[list[str], list[str]]:
        self._model.load_state_dict(state_dict)
        return [], []
