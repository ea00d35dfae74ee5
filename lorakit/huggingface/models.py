"""Models named by a Hugging Face folder or hub id, or given as a config: their structure alone, or with weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.artifacts.checkpoint import stored_tensors
from lorakit.artifacts.json_files import read_object
from lorakit.errors import LorakitError, ModelError
from lorakit.hooks.specs import hookimpl
from lorakit.language.suggestions import distance
from lorakit.values import HUB_ID, ModelReference

if TYPE_CHECKING:
    from torch import nn

HUB = "https://huggingface.co"


@hookimpl
def lorakit_load_model(reference: ModelReference) -> nn.Module | None:
    if reference.is_factory:
        return None
    config = reference.config if reference.config is not None else _config(reference)
    return _with_weights(reference, config) if reference.with_weights else _structure(config, reference)


@hookimpl
def lorakit_model_merged(model: nn.Module) -> None:
    from lorakit.huggingface import marks

    if marks.stored_quantized(model) is not None:
        marks.forget_reading(model)
        marks.clear(model)


def check_reference(reference: ModelReference) -> None:
    """Raise ModelError for a folder that is no model, and for a name that no hub id can be or that means a folder."""
    folder = Path(reference.text)
    try:
        is_folder, exists = folder.is_dir(), folder.exists()
    # a name that is too long, a folder that may not be looked into
    except OSError as error:
        raise ModelError(f"cannot read the model {reference.text}: {error.strerror}") from error
    if is_folder:
        _check_folder(folder, reference)
    elif exists:
        raise ModelError(
            f"{reference.text} is a file; a model is a folder with a config.json, a hub id, or FILE.py:FACTORY"
        )
    elif not HUB_ID.fullmatch(reference.text):
        raise ModelError(f"no such model folder: {reference.text}{_hint(folder)}")
    elif _is_cached(reference.text):
        return
    elif hint := _hint(folder):
        raise ModelError(
            f"no such model folder: {reference.text}{hint} (a model of that name on the hub is taken once it is "
            f"downloaded: hf download {reference.text})"
        )
    elif host := _out_of_reach():
        raise ModelError(f"no such model folder: {reference.text}; nor can it be fetched, since {host} is out of reach")


def _out_of_reach() -> str:
    """Return the hub's host where its name leads nowhere, which the hub's library would try again and again."""
    import socket
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    if os.environ.get("HF_HUB_OFFLINE") or getproxies():
        return ""
    host = urlsplit(os.environ.get("HF_ENDPOINT") or HUB).hostname or ""
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return host
    return ""


def _hint(folder: Path) -> str:
    """Return which model folder beside it a misspelled one probably means."""
    try:
        names = [one.parent.name for one in folder.parent.glob("*/config.json")]
    except OSError:
        return ""
    near = next((name for name in names if distance(folder.name.lower(), name.lower()) <= 1), None)
    return f"; did you mean `{folder.parent / near}`?" if near else ""


def _is_cached(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(hub_id, "config.json"), str)


def _config(reference: ModelReference) -> Any:
    check_reference(reference)
    from transformers import AutoConfig

    with _plain_errors(reference):
        return AutoConfig.from_pretrained(reference.text, trust_remote_code=reference.trust_remote_code)


def _check_folder(folder: Path, reference: ModelReference) -> None:
    """Say what a folder lacks before a library does in its own words."""
    config = folder / "config.json"
    if not config.is_file():
        hint = ""
        if (folder / "adapter_config.json").is_file():
            hint = "; it holds an adapter: give its base model here"
        raise ModelError(f"{folder} is no model: it has no config.json{hint}")
    read_object(config, "model config", ModelError)
    if not reference.with_weights:
        return
    if any(folder.glob("*.safetensors")):
        return
    if any(folder.glob("*.bin")):
        if not reference.allow_pickle:
            raise ModelError(
                f"{folder} holds its weights as pickle (.bin), which can run code; --allow-pickle reads them"
            )
        return
    raise ModelError(f"{folder} holds no weights: no *.safetensors file in it")


def _model_class(config: Any) -> Any:
    import transformers

    for name in getattr(config, "architectures", None) or ():
        if isinstance(found := getattr(transformers, name, None), type):
            return found
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM, transformers.AutoModel):
        mapping = auto._model_mapping
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise ModelError(f"transformers knows no model class for {type(config).__name__}")


def _structure(config: Any, reference: ModelReference) -> nn.Module:
    import torch
    from transformers.initialization import no_init_weights

    with _plain_errors(reference), torch.device("meta"), no_init_weights():
        if getattr(config, "auto_map", None) and reference.trust_remote_code:
            from transformers import AutoModelForCausalLM

            model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
        else:
            model = _model_class(config)._from_config(config)
        _put_stored_layers(model, config, reference)
    # equal weights are tied only once the model says so, which from_pretrained does by itself
    model.tie_weights()
    return model  # type: ignore[no-any-return]


def _put_stored_layers(model: Any, config: Any, reference: ModelReference) -> None:
    """Give the structure of a quantized checkpoint the layers that it will have."""
    from lorakit.huggingface.checkpoints import stored_config

    if not (stored := stored_config(config, reference)):
        return
    import torch
    from transformers.quantizers.auto import AutoHfQuantizer

    default = torch.get_default_dtype()
    try:
        # what these layers make anew, such as a bias, takes the default dtype
        torch.set_default_dtype(model.dtype)
        quantizer = AutoHfQuantizer.from_config(stored, pre_quantized=True)
        quantizer.preprocess_model(model=model, dtype=model.dtype, device_map=None, checkpoint_files=None)
    except ImportError:
        # without the library that these layers need, the structure is right in all but what it weighs
        pass
    finally:
        torch.set_default_dtype(default)


def _with_weights(reference: ModelReference, config: Any) -> nn.Module:
    from lorakit.huggingface.checkpoints import load_checkpoint

    with _plain_errors(reference):
        if getattr(config, "auto_map", None) and reference.trust_remote_code:
            from transformers import AutoModelForCausalLM

            return load_checkpoint(AutoModelForCausalLM, config, reference)
        return load_checkpoint(_model_class(config), config, reference)


@contextmanager
def _plain_errors(reference: ModelReference) -> Iterator[None]:
    """Turn what transformers and safetensors raise for a bad folder or id into a ModelError of one paragraph."""
    from safetensors import SafetensorError

    if not os.environ.get("TRANSFORMERS_VERBOSITY"):
        from transformers.utils import logging

        logging.set_verbosity_error()
    try:
        yield
    except LorakitError:
        raise
    except SafetensorError as error:
        # which file it was, transformers does not say
        stored_tensors(Path(reference.text))
        raise ModelError(f"{reference.text} is damaged or cut short: {error}") from error
    # transformers computes with whatever a config says, and fails where that leads it
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        if not isinstance(error, OSError | ValueError | ImportError | RuntimeError):
            first = f"{type(error).__name__}: {first}"
        raise ModelError(f"cannot read the model {reference.text}: {first}") from error
