"""transformers' Trainer: checkpoints hold the adapters alone, and resuming finds them, without a Trainer of our own.

Trainer saves by `model.save_pretrained(folder)` and resumes by `model.load_state_dict(…, False)` on model.safetensors.
So an adapted model saves its adapter folder, and in checkpoints writes a file of that name for this load.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.artifacts.checkpoint import MODEL_WEIGHTS
from lorakit.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lorakit.artifacts.adapter_folder import Written
    from lorakit.planning.plan import Plan

logger = logging.getLogger("lorakit")
# what transformers calls the weights of a whole model
WHOLE = re.compile(r"(pytorch_)?model(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?")
OLD = ".old"


@hookimpl
def lorakit_model_ready(model: nn.Module, plan: Plan) -> None:
    from lorakit.artifacts import state_dict
    from lorakit.huggingface import marks

    state_dict.stand_by(model)
    if not marks.is_pretrained(model):
        return
    # Trainer refuses models that transformers holds quantized, and so does `model.to`; by now the layers are lorakit's
    marks.set_plain(model)
    marks.set_saving(model, functools.partial(_save_adapters, model))


@hookimpl
def lorakit_model_merged(model: nn.Module) -> None:
    from lorakit.artifacts import state_dict
    from lorakit.huggingface import marks

    marks.clear_saving(model)
    state_dict.let_go(model)


def _save_adapters(
    model: nn.Module,
    save_directory: str | Path,
    is_main_process: bool = True,
    state_dict: Mapping[str, Tensor] | None = None,
    **_: Any,
) -> None:
    """Write the adapters in use into a folder that Trainer may have made already.

    Of a sharded model a trainer that calls this in one process alone hands over what it gathered.
    """
    from lorakit.trainers.checkpoints import is_checkpoint

    if not is_main_process:
        return
    folder = Path(save_directory)
    written = write_used(model, folder, gathered=state_dict)
    if written and is_checkpoint(folder):
        write_state(folder / MODEL_WEIGHTS, written)


def write_state(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the file that Trainer looks for in a checkpoint."""
    from safetensors.torch import save_file

    from lorakit.artifacts.adapter_folder import unshared, write_aside

    write_aside(file, lambda path: save_file(unshared(dict(tensors)), path, metadata={"format": "pt"}))


def write_used(model: nn.Module, folder: Path, *, gathered: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Write the adapters in use, each where PEFT has it, and return them as one state dict; empty where none writes.

    Weights of a whole model that stood there are out of the way then. Raises: ModelError if none is in use.
    """
    from lorakit.application.state import adapter_of, state_of
    from lorakit.artifacts.state_dict import places, state_dict_of

    used = [one.name for one in state_of(model).used] or [adapter_of(model).name]
    written: dict[str, Written] = {}
    begin_folder(folder)
    for name, place in places(used).items():
        if (one := write_into(model, folder / place, name, gathered=gathered)) is not None:
            written[place] = one
    put_away(model, folder)
    return state_dict_of(written)


def begin_folder(folder: Path) -> None:
    """Make a folder, unless it is there; a checkpoint is not whole from then on."""
    from lorakit.trainers.checkpoints import begin, is_checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    if is_checkpoint(folder):
        # also what stands here from another run
        begin(folder)


def write_into(
    model: nn.Module, folder: Path, name: str | None = None, *, gathered: Mapping[str, Tensor] | None = None
) -> Written | None:
    """Write an adapter's files into a folder, which may be there; return what was written, if it was here."""
    from lorakit.application.state import state_of
    from lorakit.artifacts.adapter_folder import write_adapter_files

    begin_folder(folder)
    return write_adapter_files(model, folder, state_of(model).plugins, name, gathered=gathered)


def put_away(model: nn.Module, folder: Path) -> None:
    """Let no weights of a whole model stand beside an adapter under a name by which they would be read with it.

    Transformers replaces them when it saves; here they get another name, for nothing else may hold them. The base's own
    folder stays as it is.
    """
    from lorakit.trainers.checkpoints import is_checkpoint

    own = getattr(getattr(model, "config", None), "_name_or_path", None)
    if own and Path(own).is_dir() and folder.samefile(own):
        return
    stale = sorted(path for path in folder.iterdir() if WHOLE.fullmatch(path.name))
    if is_checkpoint(folder):
        for path in stale:
            path.unlink()
        return
    for path in stale:
        other = path.with_name(path.name + OLD)
        path.replace(other)
        logger.warning("%s is of a whole model, not of the adapter beside it: it is called %s now", path, other.name)
