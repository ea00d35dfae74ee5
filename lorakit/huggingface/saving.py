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

    from lorakit.planning.plan import Plan

logger = logging.getLogger("lorakit")
# what transformers calls the weights of a whole model
WHOLE = re.compile(r"(pytorch_)?model(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?")
OLD = ".old"


@hookimpl
def lorakit_model_ready(model: nn.Module, plan: Plan) -> None:
    from lorakit.huggingface import marks

    if not marks.is_pretrained(model):
        return
    # Trainer refuses models that transformers holds quantized, and so does `model.to`; by now the layers are lorakit's
    marks.set_plain(model)
    marks.set_saving(model, functools.partial(_save_adapters, model))


@hookimpl
def lorakit_model_merged(model: nn.Module) -> None:
    from lorakit.huggingface import marks

    marks.clear_saving(model)


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
    if is_checkpoint(folder):
        write_state(model, folder, written)


def write_state(model: nn.Module, folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the file that Trainer looks for in a checkpoint, where this process writes a model's files."""
    from safetensors.torch import save_file

    from lorakit.application.sharding import writes
    from lorakit.artifacts.adapter_folder import write_aside

    if writes(model):
        write_aside(folder / MODEL_WEIGHTS, lambda path: save_file(dict(tensors), path, metadata={"format": "pt"}))


def to_write(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state as safetensors takes it."""
    from lorakit.artifacts.adapter_folder import ready, unshared

    return unshared({name: ready(tensor) for name, tensor in state.items()})


def write_used(model: nn.Module, folder: Path, *, gathered: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Write the adapters in use, each where PEFT has it, and return them as one state to write.

    One alone has the folder itself, and so `default` of several. Weights of a whole model that stood there are out of
    the way then. Every process that holds a part of a sharded model has to call this, or the one that has what was
    `gathered`. Raises: ModelError if none is in use.
    """
    from lorakit.application.state import DEFAULT, adapter_of, state_of
    from lorakit.artifacts.adapter_state import packed

    used = [one.name for one in state_of(model).used] or [adapter_of(model).name]
    begin_folder(folder)
    for name in used:
        place = folder if name == DEFAULT or len(used) == 1 else folder / name
        write_into(model, place, name, gathered=gathered)
    put_away(model, folder)
    return to_write(packed(model, used, gathered=gathered))


def begin_folder(folder: Path) -> None:
    """Make a folder, unless it is there; a checkpoint is not whole from then on."""
    from lorakit.trainers.checkpoints import begin, is_checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    if is_checkpoint(folder):
        # also what stands here from another run
        begin(folder)


def write_into(
    model: nn.Module, folder: Path, name: str | None = None, *, gathered: Mapping[str, Tensor] | None = None
) -> None:
    """Write an adapter's files into a folder, which may be there."""
    from lorakit.application.state import state_of
    from lorakit.artifacts.adapter_folder import write_adapter_files

    begin_folder(folder)
    write_adapter_files(model, folder, state_of(model).plugins, name, gathered=gathered)


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
