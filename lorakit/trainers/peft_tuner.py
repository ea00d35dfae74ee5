"""What stands in a `PeftModel` where PEFT has a tuner: the adapted model, its adapters answering to PEFT's calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from torch import Tensor, nn

from lorakit.api import load, merge
from lorakit.application.sharding import is_sharded
from lorakit.application.state import DEFAULT, adapter_of, state_of
from lorakit.application.trainables import trained_by
from lorakit.artifacts.adapter_state import EARLIER, below, packed
from lorakit.artifacts.peft_names import PREFIX, adapter_tensors
from lorakit.artifacts.resuming import resume
from lorakit.errors import ModelError
from lorakit.huggingface import saving
from lorakit.named_adapters import Adapters
from lorakit.trainers.earlier import Earlier
from lorakit.trainers.peft_config import TYPE, SpecConfig

# the name under which TRL asks for an adapter once more, to be its reference
REFERENCE = "ref"
# how PEFT names the base model where a batch gives a row no adapter
BASE = "__base__"


class _Configs(dict[str, SpecConfig]):
    """Configs by name, the active adapter's for `default` where none is called so: TRL asks for no other name."""

    def __init__(self, configs: Mapping[str, SpecConfig], active: SpecConfig) -> None:
        super().__init__(configs)
        self._active = active

    def __missing__(self, name: str) -> SpecConfig:
        if name != DEFAULT:
            raise KeyError(name)
        return self._active


class SpecTuner(nn.Module):
    """The adapted model as `model`, and its adapters by their names; `earlier` are adapters as they were."""

    # how the names of what an adapter trains begin
    prefix = "lora_"

    def __init__(self, model: nn.Module, peft_config: Mapping[str, SpecConfig], adapter_name: str, **_: Any) -> None:
        super().__init__()
        config = peft_config[adapter_name]
        if not config.is_applied:
            config.apply(model, adapter_name)
        self.model = model
        self.earlier: dict[str, Earlier] = {}
        self._configs: dict[str, SpecConfig] = {adapter_name: config}
        self._used: list[str] = []

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns."""
        return self.model(*args, **kwargs)

    @property
    def adapters(self) -> Adapters:
        """The model's adapters."""
        return Adapters(self.model)

    @property
    def peft_config(self) -> dict[str, SpecConfig]:
        """A config for each adapter, also for those that came another way."""
        names = (*self.adapters.names, *self.earlier)
        configs = {name: self._configs.get(name) or self._config_of(name) for name in names}
        return _Configs(configs, configs[self.active_adapters[0]])

    def _config_of(self, name: str) -> SpecConfig:
        adapter = adapter_of(self.model, self.earlier[name].of if name in self.earlier else name)
        config = SpecConfig(spec=adapter.plan, seed=adapter.seed, is_applied=True)
        return self._configs.setdefault(name, config)

    @property
    def standing(self) -> str | None:
        """The name of what stands as it was, if anything does."""
        return next((name for name, one in self.earlier.items() if one.own is not None), None)

    @property
    def active_adapters(self) -> list[str]:
        """The adapters in use, also while they are disabled, as PEFT has it."""
        self._used = list(self.adapters.used) or self._used or list(self.adapters.names[:1])
        standing = self.standing
        return [standing] if standing else self._used

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Use these adapters alone, to train unless it is to infer, or one as it was. Raises: ModelError."""
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        standing, earlier = self.standing, self.earlier.get(names[0])
        self._leave()
        used = [earlier.of] if earlier else names
        if list(self.adapters.used) != used:
            self.adapters.use(dict.fromkeys(used, 1.0))
        if earlier:
            earlier.stand(self.model)
        elif not standing:
            self.set_requires_grad(names, not inference_mode)

    def _leave(self) -> None:
        for one in self.earlier.values():
            one.leave(self.model)

    @contextmanager
    def holding(self, name: str) -> Iterator[str]:
        """Let the model hold what goes by this name inside the block, and yield the adapter's own name."""
        standing, earlier = self.standing, self.earlier.get(name)
        self._leave()
        if earlier:
            earlier.stand(self.model)
        try:
            yield earlier.of if earlier else name
        finally:
            self._leave()
            if standing:
                self.earlier[standing].stand(self.model)

    def state(self, gathered: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return all adapters as one state; those as they were too, but of a sharded model, which is in parts then."""
        with self.holding(self.adapters.names[0]):
            held = packed(self.model, gathered=gathered)
            for name, one in self.earlier.items() if not is_sharded(self.model) else ():
                held |= {f"{EARLIER}{name}.{file_name}": value for file_name, value in one.values.items()}
            return saving.to_write(held)

    def earlier_in(self, state_dict: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
        """Return what a state holds of adapters as they were, by name. Raises: AdapterError if that does not fit."""
        found = {name: below(state_dict, f"{EARLIER}{name}.") for name in self.earlier}
        return {name: self.earlier[name].fitting(values) for name, values in found.items() if values}

    def set_requires_grad(self, adapter_names: str | Iterable[str], requires_grad: bool = True) -> None:
        """Let adapters train, or not. Raises: ModelError."""
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            for _, parameter in trained_by(self.model, state_of(self.model).get(name)):
                parameter.requires_grad_(requires_grad)

    def add_adapter(self, name: str, config: PeftConfig) -> None:
        """Put an adapter more on the model, and leave in use what is; for TRL's reference, keep the one it is of.

        Raises: ModelError for a config that is not lorakit's, and what `lorakit.apply` raises.
        """
        of = next((one for one, held in self.peft_config.items() if held is config), None)
        if name in self.peft_config:
            raise ModelError(f"this model has an adapter called `{name}` already")
        if not isinstance(config, SpecConfig):
            raise ModelError(
                f"this model was adapted by lorakit, and takes lorakit.peft_config(SPEC), not {type(config).__name__}; "
                "`lorakit init --from adapter_config.json` writes the spec that says the same"
            )
        if name == REFERENCE and of is not None:
            self.earlier[name] = Earlier(self.model, of)
            return
        self._leave()
        with self._unused():
            config.apply(self.model, name)

    @contextmanager
    def _unused(self) -> Iterator[None]:
        """Leave in use what is, whatever comes onto the model inside the block."""
        used = {name: strength for name, strength in self.adapters.used.items() if isinstance(strength, float)}
        yield
        self.adapters.use(used)

    def load_adapter(self, folder: Path, name: str, *, is_trainable: bool) -> None:
        """Put a saved adapter on the model, or into the place of the one of this name: of the same plan, to train on.

        Raises: AdapterError; nothing is changed then.
        """
        state = state_of(self.model)
        self._leave()
        if name in self.earlier:
            self.earlier[name].load(self.model, folder)
        elif name not in state.named:
            training = self.model.training
            with self._unused():
                load(folder, self.model, name=name, plugins=state.plugins)
            self.model.train(training)
        elif is_trainable:
            resume(self.model, state, name, folder)
        else:
            self.adapters.swap(name, folder)

    def delete_adapter(self, adapter_name: str) -> None:
        """Take an adapter off the model, and use the first that is left where none is. Raises: ModelError."""
        self._leave()
        if self.earlier.pop(adapter_name, None) is None:
            self.adapters.remove(adapter_name)
        self._configs.pop(adapter_name, None)
        if not self.adapters.used:
            self.adapters.use(self.adapters.names[0])

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Fold the adapters in use, or these, into weights beside the base's own until `unmerge_adapter`."""
        if adapter_names:
            self.set_adapter(adapter_names)
        self.adapters.merge()

    def unmerge_adapter(self) -> None:
        """Bring the base's own weights back."""
        self.adapters.unmerge()

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """Return the model with the adapters in use, or these, folded into its weights and none left."""
        if adapter_names:
            self.set_adapter(adapter_names)
        self._leave()
        return merge(self.model)

    def unload(self) -> nn.Module:
        """Return the model without any adapter, its quantized weights dequantized."""
        self._leave()
        self.adapters.use({})
        return merge(self.model)

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: Any, adapter_names: list[str] | None = None, **__: Any) -> Iterator[None]:
        """Give every row of a batch the adapter that is named for it, where they are named."""
        if adapter_names is None:
            yield
            return
        with self.adapters.rows([None if name == BASE else name for name in adapter_names]):
            yield

    @classmethod
    def _get_adapter_state_dict(
        cls, model: Any, adapter_name: str, state_dict: Mapping[str, Tensor], **_: Any
    ) -> dict[str, Tensor]:
        """Return an adapter's tensors by their names in a file."""
        tuner = model.base_model
        if adapter_name in tuner.earlier:
            return dict(tuner.earlier[adapter_name].values)
        tensors = adapter_tensors(tuner.model, adapter_of(tuner.model, adapter_name))
        return {one.file_name: state_dict.get(PREFIX + one.inner, one.tensor) for one in tensors}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key

    @classmethod
    def _remap_adapter_state_dict_for_load(cls, state_dict: Mapping[str, Tensor], **_: Any) -> dict[str, Tensor]:
        """Leave the names of a file: the model knows them."""
        return dict(state_dict)


# `register_peft_method` takes PEFT's own types alone
PEFT_TYPE_TO_CONFIG_MAPPING[TYPE] = SpecConfig  # type: ignore[index]
PEFT_TYPE_TO_TUNER_MAPPING[TYPE] = SpecTuner  # type: ignore[index,assignment]
