"""A Hugging Face checkpoint into memory: loaded by transformers, its tensors read and quantized one by one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from lorakit.artifacts.checkpoint import local_folder, stored_tensors
from lorakit.artifacts.model_folder import without_bars
from lorakit.errors import ModelError
from lorakit.huggingface.base_manifest import METHOD
from lorakit.huggingface.stored_layers import StoredConfig
from lorakit.huggingface.streaming import Halt, plan_config
from lorakit.planning.place import Place
from lorakit.values import ModelReference

logger = logging.getLogger(__name__)


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
    # what is missing or of another shape, transformers fills at random
    arguments |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model: PreTrainedModel
    with _progress(reference), _drawing(reference):
        if not tensors:
            model, found = model_class.from_pretrained(reference.text, **arguments)
            check_complete(found, reference)
            return model
        if isinstance(own, StoredConfig):
            own.check(tensors)
            del config.quantization_config
        # without a file of its own the model makes one from its config
        with suppress(OSError):
            arguments["generation_config"] = GenerationConfig.from_pretrained(reference.text)
        model, found = model_class.from_pretrained(None, config=config, state_dict=tensors, **arguments)
        check_complete(found, reference)
    model.name_or_path = model.config.name_or_path = reference.text
    return model


def check_complete(found: Mapping[str, Any], reference: ModelReference) -> None:
    """Hold what transformers found in a checkpoint against what its model needs, and say what starts anew on purpose.

    Raises: ModelError naming weights of another shape, or that the files lack and nobody named as fresh.
    """
    if found["mismatched_keys"]:
        name, stored, needed = sorted(found["mismatched_keys"])[0]
        raise ModelError(
            f"`{name}` is {tuple(stored)} in the files of {reference.text} and {tuple(needed)} in the model that their "
            "config.json describes: they are not of one model"
        )
    missing = sorted(found["missing_keys"])
    lacking = [name for name in missing if not _is_fresh(name, reference.fresh)]
    if lacking:
        others = sorted(found["unexpected_keys"])
        hint = f"; they hold {_first(others)} instead, which it does not take" if others else ""
        raise ModelError(
            f"the files of {reference.text} lack {_first(lacking)}, which its model needs{hint}. Only what a spec "
            "trains in full may start anew, such as a new head: `train @head`"
        )
    if left := sorted(found["unexpected_keys"]):
        logger.warning(
            "the files of %s hold %s, which the model that their config.json describes does not take: what they are "
            "is left out", reference.text, _first(left),
        )  # fmt: skip
    if missing and reference.starter is not None and reference.starter.initialize:
        logger.warning("the files of %s lack %s: what trains there starts anew", reference.text, _first(missing))


def _is_fresh(name: str, fresh: Sequence[str]) -> bool:
    path = Place(name, is_parameter=True).holder
    return any(f".{one}." in f".{path}." for one in fresh)


def _first(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


@contextmanager
def _drawing(reference: ModelReference) -> Iterator[None]:
    """Let weights that start anew be drawn by the run's seed, and leave everyone else's numbers as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(reference.starter.seed if reference.starter else 0)
        yield


@contextmanager
def _progress(reference: ModelReference) -> Iterator[None]:
    """Let errors through at once, and keep transformers from drawing a second progress bar."""
    try:
        with nullcontext() if reference.progress is None else without_bars():
            yield
    except Halt as halt:
        raise halt.error from halt.error.__cause__
