"""Adapter folders: adapter_model.safetensors and adapter_config.json in PEFT's format, and plan.json."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from lorakit.application.compute import own_value
from lorakit.application.sharding import is_replica, is_sharded_tensor, meet, whole, writes
from lorakit.application.state import Adapted, NamedAdapter, adapter_of, state_of, unwrapped
from lorakit.application.statistics import moved_buffers
from lorakit.artifacts.folders import new_folder, open_up
from lorakit.artifacts.model_card import CARD, keep_card
from lorakit.artifacts.peft_config import FOREIGN_TYPE, peft_config
from lorakit.artifacts.peft_names import AdapterTensor, adapter_tensors
from lorakit.artifacts.saved_plan import check_tensors, plan_to_save
from lorakit.errors import ModelError, OutputError
from lorakit.hooks.manager import Plugins

WEIGHTS, CONFIG, PLAN = "adapter_model.safetensors", "adapter_config.json", "plan.json"
# what a start took from the base weights, for an adapter that has such a start
START = "start.safetensors"
logger = logging.getLogger(__name__)
# what a trainer or a model card may put beside an adapter, and `save` may replace with it
COMPANIONS = {
    WEIGHTS, CONFIG, PLAN, START, CARD, "history.jsonl", "training.json", "adapter_model.bin", ".gitattributes",
    "training_args.bin",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "vocab.json",
    "merges.txt", "added_tokens.json",
}  # fmt: skip


def save_adapter(
    model: nn.Module,
    folder: Path,
    plugins: Plugins,
    *,
    name: str | None = None,
    replace: bool = False,
    beside: Callable[[Path], object] | None = None,
    also: Sequence[str] = (),
) -> Path:
    """Write the adapter of a model, replacing whole the adapter that the folder may hold, or with `replace` anything.

    It is the one in use, or that of the name. `beside` adds files of its own to the folder before it takes its place;
    `also` names what else may be replaced; a README.md that a person wrote stays. A model that is sharded is saved by
    all of its processes together; the first writes. Of one that trains under DistributedDataParallel the first does
    too, and does not wait for the others.
    Raises: ModelError if the model has no such adapter, OutputError if the folder holds anything else, WriteError.
    """
    if not replace:
        _refuse_foreign(folder, {*COMPANIONS, *also})
    try:
        if is_replica(model) and not writes(model):
            return folder
        if writes(model):
            with new_folder(folder) as aside:
                _write_all(model, aside, plugins, name, beside)
                if (folder / CONFIG).is_file():
                    keep_card(folder, aside)
        else:
            # nothing is written here, but what is sharded takes every process to gather
            _write_all(model, folder, plugins, name, beside)
    finally:
        meet(model)
    return folder


def _write_all(
    model: nn.Module, folder: Path, plugins: Plugins, name: str | None, beside: Callable[[Path], object] | None
) -> None:
    write_adapter_files(model, folder, plugins, name)
    if beside is not None:
        beside(folder)


def write_adapter_files(
    model: nn.Module,
    folder: Path,
    plugins: Plugins,
    name: str | None = None,
    *,
    gathered: Mapping[str, Tensor] | None = None,
) -> None:
    """Write an adapter's files into a folder that exists, each aside first, so that none is ever half there.

    Every process that holds a part of a sharded model has to call this; the first writes. With a state dict that holds
    what was `gathered` of it already, the first alone.

    Raises: ModelError if a tensor is not finite, or its shape is not one that its method gives.
    """
    adapter = adapter_of(model, name)
    model = unwrapped(model)
    plan = plan_to_save(adapter, plugins)
    state = state_of(model)
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    # in the dtype that is written: what is finite in a wider one may not be so there
    tensors = [
        replace(one, tensor=own_value(state, held.get(one.inner, one.tensor), gathered_value(one, gathered)))
        for one in adapter_tensors(model, replace(adapter, plan=plan))
    ]
    check_tensors(tensors)
    if not writes(model):
        return
    values = {one.file_name: ready(one.tensor) for one in tensors}
    fields = peft_config(plan, model, plugins, changes_base=bool(adapter.taken))
    _say_if_foreign(adapter, str(fields["peft_type"]))
    _say_if_moved(model, state)
    config = json.dumps(fields, indent=2) + "\n"
    writers: dict[str, Callable[[Path], object]] = {
        WEIGHTS: lambda path: save_file(unshared(values), path, metadata={"format": "pt"}),
        CONFIG: lambda path: path.write_text(config, encoding="utf-8"),
        PLAN: lambda path: path.write_text(plan.to_json() + "\n", encoding="utf-8"),
    }
    if starts := starts_of(adapter):
        writers[START] = lambda path: save_file(starts, path, metadata={"format": "pt"})
    for file_name, write in writers.items():
        write_aside(folder / file_name, write)
    plugins.before_save(model, folder)


def write_aside(file: Path, write: Callable[[Path], object]) -> None:
    """Have a file written under another name beside it, and put in its place with the usual permissions."""
    write(aside := file.with_name(f".{file.name}.new"))
    open_up(aside)
    aside.replace(file)


def gathered_value(one: AdapterTensor, gathered: Mapping[str, Tensor] | None) -> Tensor:
    """Return a tensor whole: out of what was `gathered`, or else gathered with the other processes.

    Raises: ModelError if it is not among what was gathered.
    """
    if gathered is None or not is_sharded_tensor(one.tensor):
        return whole(one.tensor)
    if one.inner not in gathered:
        raise ModelError(
            f"the adapter is saved out of a state dict that lacks `{one.inner}`: hand over all that was gathered of "
            "the model, or call lorakit.save(model, folder) in every process"
        )
    return gathered[one.inner]


def starts_of(adapter: NamedAdapter) -> dict[str, Tensor]:
    """Return what an adapter's start took from the base weights, by the names in its file."""
    return {f"{path}.{matrix}": value for path, pair in adapter.taken.items() for matrix, value in _named(pair)}


def _named(pair: tuple[Tensor, Tensor]) -> Iterable[tuple[str, Tensor]]:
    return zip(("lora_A", "lora_B"), (one.contiguous() for one in pair), strict=True)


def _say_if_foreign(adapter: NamedAdapter, peft_type: str) -> None:
    """Say once that PEFT will refuse an adapter, and why."""
    if not peft_type.startswith(FOREIGN_TYPE) or adapter.is_told:
        return
    adapter.is_told = True
    why = "starts from a part of the base weight" if adapter.taken else "is of a method that PEFT cannot compute"
    logger.warning(
        "the adapter `%s` %s: its folder is of the type %s, which PEFT refuses; lorakit loads it, and "
        "`lorakit.merge` makes a plain model of it",
        adapter.name, why, peft_type,
    )  # fmt: skip


def _say_if_moved(model: nn.Module, state: Adapted) -> None:
    """Say once of what the base's modules counted in, and no adapter holds, that it is lost with the model."""
    new = [name for name in moved_buffers(model, state) if name not in state.told]
    if new:
        state.told.update(new)
        logger.warning(
            "the base changed as it ran, in %s, which no adapter holds: loaded on the base as it was, this one "
            "answers otherwise; `train` these modules, or keep them in evaluation mode",
            ", ".join(f"`{name}`" for name in new[:3]) + f" and {len(new) - 3} more" * (len(new) > 3),
        )  # fmt: skip


def _refuse_foreign(folder: Path, known: set[str]) -> None:
    try:
        if not folder.exists():
            if folder.is_symlink():
                raise OutputError(f"{folder} is a link that leads nowhere; remove it, or give another place")
            return
        if not folder.is_dir():
            raise OutputError(f"{folder} is a file; an adapter is a folder")
        strangers = sorted(path.name for path in folder.iterdir() if path.name not in known)
    # a name that is too long, a folder that may not be looked into
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror}") from error
    if strangers:
        raise OutputError(f"{folder} holds other things than an adapter, such as {strangers[0]}; give another place")


def ready(tensor: Tensor) -> Tensor:
    """Return a tensor as safetensors writes it."""
    return tensor.detach().to("cpu").contiguous()


def unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share storage: both ends of a trained tie are written, since PEFT reads each by its name."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return result
