"""A model that lorakit adapted as a `PeftModel`: what PEFT does by its tuner's layers is done by lorakit's adapters."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING
from peft.peft_model import TunerLayerStatus, TunerModelStatus
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from lorakit.api import summary
from lorakit.application.state import DEFAULT, state_of, unwrapped
from lorakit.artifacts.adapter_state import FIELDS
from lorakit.artifacts.peft_names import PREFIX
from lorakit.errors import ModelError
from lorakit.huggingface import saving
from lorakit.trainers.checkpoints import is_checkpoint
from lorakit.trainers.peft_config import TYPE, SpecConfig
from lorakit.trainers.peft_status import layer_status, model_status
from lorakit.trainers.peft_tuner import SpecTuner


class PeftView(PeftModel):
    """A view of one model, which it holds as `base_model.model`: adapters that lorakit put there, by PEFT's names."""

    base_model: SpecTuner

    def __init__(self, model: nn.Module, peft_config: SpecConfig, adapter_name: str = DEFAULT, **_: Any) -> None:
        # dtypes and devices are the spec's
        super().__init__(model, peft_config, adapter_name)

    @classmethod
    def around(cls, model: nn.Module) -> PeftView:
        """Return the view of a model that is adapted already. Raises: ModelError if it is not."""
        if isinstance(model, cls):
            return model
        state = state_of(model)
        adapter = next(iter(state.used or state.named.values()))
        config = SpecConfig(spec=adapter.plan, seed=adapter.seed, is_applied=True)
        return cls(unwrapped(model), config, adapter.name)

    @property
    def active_adapter(self) -> str:
        """The first adapter in use, also while it is disabled."""
        return self.active_adapters[0]

    @active_adapter.setter
    def active_adapter(self, name: str) -> None:
        # PEFT keeps its own record; which is in use, the model knows
        pass

    def get_base_model(self) -> nn.Module:
        """Return the adapted model itself."""
        return self.base_model.model

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Let the base model alone answer inside the block."""
        was, self._adapters_disabled = self._adapters_disabled, True
        try:
            with self.base_model.adapters.disabled():
                yield
        finally:
            self._adapters_disabled = was

    def add_adapter(self, adapter_name: str, peft_config: PeftConfig, *_: Any, **__: Any) -> None:
        """Put an adapter more on the model, and leave in use what is. Raises: ModelError."""
        self.base_model.add_adapter(adapter_name, peft_config)

    def load_adapter(
        self, model_id: str | os.PathLike[Any], adapter_name: str, is_trainable: bool = False, *_: Any, **__: Any
    ) -> _IncompatibleKeys:
        """Put a saved adapter on the model, or its tensors into the place of the one of this name.

        To train on, it has to be of the same plan. Of a checkpoint Trainer asks for the first in use alone, and gets
        the others with it. Raises: AdapterError; nothing is changed then.
        """
        folder, used = Path(model_id), self.active_adapters
        self.base_model.load_adapter(folder, adapter_name, is_trainable=is_trainable)
        for name in used[1:] if is_checkpoint(folder) and adapter_name == used[0] else ():
            if (folder / name).is_dir():
                self.base_model.load_adapter(folder / name, name, is_trainable=is_trainable)
        if not is_trainable:
            self.eval()
        return _IncompatibleKeys([], [])

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Use one adapter, or several, alone; they train unless it is to infer. Raises: ModelError."""
        self.base_model.set_adapter(adapter_name, inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Take an adapter off the model. Raises: ModelError if it is the only one."""
        self.base_model.delete_adapter(adapter_name)

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        save_embedding_layers: str | bool = "auto",
        is_main_process: bool = True,
        path_initial_model_for_weight_conversion: str | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        **_: Any,
    ) -> None:
        """Write adapters as lorakit does: the one in use into the folder, each other into a folder of its name in it.

        Of a sharded model a trainer hands over what it gathered, by the names that this view gives it.
        Raises: ModelError, OutputError, WriteError.
        """
        if not safe_serialization or path_initial_model_for_weight_conversion:
            raise ModelError("a lorakit adapter is written as it is, and as safetensors alone")
        if not is_main_process:
            return
        model, folder = self.base_model.model, Path(save_directory)
        first = self.active_adapter
        gathered = state_dict and {name.removeprefix(PREFIX): value for name, value in state_dict.items()}
        for name in selected_adapters or self.peft_config:
            with self.base_model.holding(name) as held:
                saving.write_into(model, folder if name == first else folder / name, held, gathered=gathered)
        # Trainer would take them for all that there is
        saving.put_away(model, folder)
        if is_checkpoint(folder):
            saving.write_state(model, folder, self.base_model.state(gathered))

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a state of this view, or one of the adapters, which a checkpoint holds with the view and without.

        Raises: AdapterError if it is not of these adapters; nothing is changed then.
        """
        tuner = self.base_model
        earlier = tuner.earlier_in(state_dict)
        own = {PREFIX + name if name.startswith(FIELDS) else name: value for name, value in state_dict.items()}
        with tuner.holding(tuner.adapters.names[0]):
            result = super().load_state_dict(own, *args, **kwargs)
            for name, values in earlier.items():
                tuner.earlier[name].values = values
        return result

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Return how many parameters train, and how many there are: a quantized weight counts as what it stands for."""
        counted = summary(self.base_model.model)
        return counted.trainable_parameters, counted.total_parameters

    def get_layer_status(self) -> list[TunerLayerStatus]:
        """Return the status of each layer that has an adapter or trains in full."""
        enabled = bool(self.base_model.adapters.used) and not self._adapters_disabled
        return layer_status(self.base_model, enabled=enabled)

    def get_model_status(self) -> TunerModelStatus:
        """Return what the status of all layers comes to."""
        return model_status(self.base_model, self.get_layer_status(), self.get_nb_trainable_parameters())


# `get_peft_model` and PEFT's own loading look here for the class that serves a config
MODEL_TYPE_TO_PEFT_MODEL_MAPPING[TYPE] = PeftView
