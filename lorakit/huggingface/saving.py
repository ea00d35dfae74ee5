"""transformers' Trainer: checkpoints hold the adapter alone, and resuming finds it, without a Trainer of our own.

Trainer saves by `model.save_pretrained(folder)` and resumes by `model.load_state_dict(…, False)` on model.safetensors.
So an adapted model saves its adapter folder, gives the file that second name in checkpoints, and translates PEFT's
tensor names when they come back.
"""

from __future__ import annotations

import os
import shutil
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from lorakit.planning.plan import Plan

# transformers.trainer_utils.PREFIX_CHECKPOINT_DIR and transformers.utils.SAFE_WEIGHTS_NAME
CHECKPOINT_PREFIX, MODEL_WEIGHTS = "checkpoint-", "model.safetensors"


@hookimpl
def lorakit_model_ready(model: nn.Module, plan: Plan) -> None:
    if not hasattr(model, "save_pretrained"):
        return
    from lorakit.application.state import adapter_of
    from lorakit.artifacts.peft_names import adapter_tensors

    # Trainer refuses models that transformers holds quantized, and so does `model.to`; by now the layers are lorakit's
    if getattr(model, "is_quantized", False):
        model.__dict__.update(is_quantized=False, hf_quantizer=None)
        model.__dict__.pop("quantization_method", None)
    # Trainer warns of every base weight that a checkpoint lacks, unless it is told that they were left out on purpose
    trained = {one.inner for one in adapter_tensors(model, adapter_of(model))}
    model._keys_to_ignore_on_save = [name for name in model.state_dict() if name not in trained]  # type: ignore[assignment]
    if "save_pretrained" in model.__dict__:
        # a second adapter on the model
        return
    model.__dict__["save_pretrained"] = types.MethodType(_save_adapter, model)
    model.register_load_state_dict_pre_hook(_translate_names)


@hookimpl
def lorakit_model_merged(model: nn.Module) -> None:
    for name in ("save_pretrained", "_keys_to_ignore_on_save"):
        model.__dict__.pop(name, None)
    for key, hook in list(model._load_state_dict_pre_hooks.items()):
        if getattr(hook, "hook", hook) is _translate_names:
            del model._load_state_dict_pre_hooks[key]


def _save_adapter(model: nn.Module, save_directory: str | Path, is_main_process: bool = True, **_: Any) -> None:
    """Write the adapter into a folder that Trainer may have made already."""
    from lorakit.application.state import state_of
    from lorakit.artifacts.adapter_folder import WEIGHTS, write_adapter_files

    if not is_main_process:
        return
    folder = Path(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    write_adapter_files(model, folder, state_of(model).plugins)
    if folder.name.startswith(CHECKPOINT_PREFIX):
        _name_twice(folder / WEIGHTS, folder / MODEL_WEIGHTS)


def _name_twice(file: Path, other: Path) -> None:
    other.unlink(missing_ok=True)
    try:
        os.link(file, other)
    except OSError:
        # a file system without hard links
        shutil.copyfile(file, other)


def _translate_names(model: nn.Module, state_dict: dict[str, Any], *_: Any) -> None:
    """Give the tensors of an adapter file the names that they have in the model."""
    from lorakit.application.state import adapter_of
    from lorakit.artifacts.peft_names import adapter_tensors

    own: dict[str, list[str]] = {}
    for one in adapter_tensors(model, adapter_of(model)):
        own.setdefault(one.file_name, []).append(one.inner)
    for name in [name for name in state_dict if name in own]:
        value = state_dict.pop(name)
        # what layers share has a name in each of them
        state_dict.update(dict.fromkeys(own[name], value))
