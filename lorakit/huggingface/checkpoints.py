"""A Hugging Face checkpoint into memory: loaded by transformers, its tensors read and quantized one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from lorakit.artifacts.checkpoint import local_folder, stored_tensors
from lorakit.artifacts.model_folder import without_bars
from lorakit.huggingface.base_manifest import METHOD
from lorakit.huggingface.stored_layers import StoredConfig
from lorakit.huggingface.streaming import Halt, plan_config
from lorakit.values import ModelReference


def stored_config(config: Any, reference: ModelReference) -> Any:
    """Return what a config says of the quantizer that wrote the checkpoint; None if its weights are plain."""
    stored = getattr(config, "quantization_config", None)
    if isinstance(stored, dict) and stored.get("quant_method") == METHOD:
        return StoredConfig(**{**stored, "plugins": reference.plugins})
    return stored


def load_checkpoint(model_class: Any, config: Any, reference: ModelReference) -> PreTrainedModel:
    """Return the model that a reference names, quantized as its plan says or as the checkpoint is.

    Raises: ModelError, PluginError if a quantizer fails, and what transformers raises for a folder that it cannot read.
    """
    arguments: dict[str, Any] = {"dtype": reference.dtype or "auto"}
    if reference.trust_remote_code:
        arguments["trust_remote_code"] = True
    if not reference.allow_pickle:
        arguments["use_safetensors"] = True
    stored = stored_config(config, reference)
    own = stored if isinstance(stored, StoredConfig) else plan_config(reference) if stored is None else None
    if own is not None:
        arguments["quantization_config"] = own
    # the code that comes with a model is found by the model's name alone
    reads = own is not None and not getattr(config, "auto_map", None)
    tensors = stored_tensors(local_folder(reference.text), reference.progress) if reads else {}
    with _progress(reference):
        if not tensors:
            return model_class.from_pretrained(reference.text, **arguments)  # type: ignore[no-any-return]
        if isinstance(own, StoredConfig):
            own.check(tensors)
            del config.quantization_config
        # without a file of its own the model makes one from its config
        with suppress(OSError):
            arguments["generation_config"] = GenerationConfig.from_pretrained(reference.text)
        model: PreTrainedModel = model_class.from_pretrained(None, config=config, state_dict=tensors, **arguments)
    model.name_or_path = model.config.name_or_path = reference.text
    return model


@contextmanager
def _progress(reference: ModelReference) -> Iterator[None]:
    """Let errors through at once, and keep transformers from drawing a second progress bar."""
    try:
        with nullcontext() if reference.progress is None else without_bars():
            yield
    except Halt as halt:
        raise halt.error from halt.error.__cause__
