"""Adapter folders: adapter_model.safetensors and adapter_config.json in PEFT's format, and plan.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from lorakit.application.compute import own_value
from lorakit.application.state import adapter_of, state_of, unwrapped
from lorakit.artifacts.folders import new_folder
from lorakit.artifacts.peft_config import peft_config
from lorakit.artifacts.peft_names import adapter_tensors
from lorakit.errors import OutputError
from lorakit.hooks.manager import Plugins

WEIGHTS, CONFIG, PLAN = "adapter_model.safetensors", "adapter_config.json", "plan.json"
# what a trainer or a model card may put beside an adapter, and `save` may replace with it
COMPANIONS = {
    WEIGHTS, CONFIG, PLAN, "adapter_model.bin", "README.md", ".gitattributes", "training_args.bin",
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
    `also` names what else may be replaced.
    Raises: ModelError if the model has no such adapter, OutputError if the folder holds anything else, WriteError.
    """
    if not replace:
        _refuse_foreign(folder, {*COMPANIONS, *also})
    with new_folder(folder) as aside:
        write_adapter_files(model, aside, plugins, name)
        if beside is not None:
            beside(aside)
    return folder


def write_adapter_files(model: nn.Module, folder: Path, plugins: Plugins, name: str | None = None) -> None:
    """Write an adapter's files into a folder that exists, each aside first, so that none is ever half there."""
    adapter = adapter_of(model, name)
    model = unwrapped(model)
    state = state_of(model)
    tensors = {
        file_name: _ready(own_value(state, model.get_parameter(inner), tensor))
        for file_name, inner, tensor in adapter_tensors(model, adapter, plugins)
    }
    config = json.dumps(peft_config(adapter.plan, model), indent=2) + "\n"
    writers: dict[str, Callable[[Path], object]] = {
        WEIGHTS: lambda path: save_file(_unshared(tensors), path, metadata={"format": "pt"}),
        CONFIG: lambda path: path.write_text(config, encoding="utf-8"),
        PLAN: lambda path: path.write_text(adapter.plan.to_json() + "\n", encoding="utf-8"),
    }
    for file_name, write in writers.items():
        write(aside := folder / f".{file_name}.new")
        aside.replace(folder / file_name)
    plugins.before_save(model, folder)


def _refuse_foreign(folder: Path, known: set[str]) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError(f"{folder} is a file; an adapter is a folder")
    if strangers := sorted(path.name for path in folder.iterdir() if path.name not in known):
        raise OutputError(f"{folder} holds other things than an adapter, such as {strangers[0]}; give another place")


def _ready(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").contiguous()


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share storage: both ends of a trained tie are written, since PEFT reads each by its name."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return result
