"""transformers' Trainer: checkpoints hold the adapter alone, and resuming finds it, without a Trainer of our own.

Trainer saves by `model.save_pretrained(folder)` and resumes by `model.load_state_dict(…, False)` on model.safetensors.
So an adapted model saves its adapter folder, gives the file that second name in checkpoints, and translates PEFT's
tensor names when they come back.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.artifacts.checkpoint import MODEL_WEIGHTS
from lorakit.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lorakit.planning.plan import Plan


@hookimpl
def lorakit_model_ready(model: nn.Module, plan: Plan) -> None:
    from lorakit.application.state import adapter_of
    from lorakit.artifacts.peft_names import adapter_tensors
    from lorakit.huggingface import marks

    if not marks.is_pretrained(model):
        return
    # Trainer refuses models that transformers holds quantized, and so does `model.to`; by now the layers are lorakit's
    marks.set_plain(model)
    trained = {one.inner for one in adapter_tensors(model, adapter_of(model))}
    left_out = [name for name in model.state_dict() if name not in trained]
    marks.set_saving(model, functools.partial(_save_adapter, model), left_out)
    if not any(_translates(hook) for hook in model._load_state_dict_pre_hooks.values()):
        model.register_load_state_dict_pre_hook(_translate_names)


@hookimpl
def lorakit_model_merged(model: nn.Module) -> None:
    from lorakit.huggingface import marks

    marks.clear_saving(model)
    for key, hook in list(model._load_state_dict_pre_hooks.items()):
        if _translates(hook):
            del model._load_state_dict_pre_hooks[key]


def _save_adapter(
    model: nn.Module,
    save_directory: str | Path,
    is_main_process: bool = True,
    state_dict: Mapping[str, Tensor] | None = None,
    **_: Any,
) -> None:
    """Write the adapter into a folder that Trainer may have made already.

    Of a sharded model a trainer that calls this in one process alone hands over what it gathered.
    """
    from lorakit.artifacts.adapter_folder import WEIGHTS
    from lorakit.trainers.checkpoints import is_checkpoint

    if not is_main_process:
        return
    folder = Path(save_directory)
    write_into(model, folder, gathered=state_dict)
    if is_checkpoint(folder):
        _name_twice(folder / WEIGHTS, folder / MODEL_WEIGHTS)


def write_into(
    model: nn.Module, folder: Path, name: str | None = None, *, gathered: Mapping[str, Tensor] | None = None
) -> None:
    """Write an adapter's files into a folder, which may be there; a checkpoint is not whole from then on."""
    from lorakit.application.state import state_of
    from lorakit.artifacts.adapter_folder import write_adapter_files
    from lorakit.trainers.checkpoints import begin, is_checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    if is_checkpoint(folder):
        # also what stands here from another run
        begin(folder)
    write_adapter_files(model, folder, state_of(model).plugins, name, gathered=gathered)


def _name_twice(file: Path, other: Path) -> None:
    other.unlink(missing_ok=True)
    try:
        os.link(file, other)
    except OSError:
        # a file system without hard links
        import shutil

        shutil.copyfile(file, other)


def _translate_names(model: nn.Module, state_dict: dict[str, Any], prefix: str = "", *_: Any) -> None:
    """Give the tensors of an adapter file the names that they have in the model, which others may hold at `prefix`."""
    from lorakit.application.state import adapter_of
    from lorakit.artifacts.peft_names import adapter_tensors

    own: dict[str, list[str]] = {}
    for one in adapter_tensors(model, adapter_of(model)):
        own.setdefault(one.file_name, []).append(one.inner)
    for name in [name for name in state_dict if name in own]:
        value = state_dict.pop(name)
        # what layers share has a name in each of them
        state_dict.update(dict.fromkeys((prefix + one for one in own[name]), value))


def _translates(hook: Any) -> bool:
    # torch wraps a hook
    return getattr(hook, "hook", hook) is _translate_names
