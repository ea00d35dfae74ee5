"""A model's safetensors files, read tensor by tensor: what they hold, and how the model calls it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lorakit.artifacts.model_folder import MODEL_WEIGHTS
from lorakit.errors import ModelError

INDEX = f"{MODEL_WEIGHTS}.index.json"
HUB_FILES = ("*.json", "model*.safetensors", "*.model", "*.txt", "*.jinja", "*.py")
# as safetensors names the dtypes that weights come in
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a checkpoint: its file, shape and dtype; the dtype is None for one that torch cannot compute in."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype | None

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * (self.dtype or torch.uint8).itemsize


def local_folder(reference: str) -> Path:
    """Return the folder of a model given as one, or as a hub id, whose files are fetched. Raises: ModelError."""
    if (folder := Path(reference)).is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(reference, allow_patterns=list(HUB_FILES)))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot fetch the model {reference}: {str(error).partition(chr(10))[0]}") from error


def stored_tensors(folder: Path) -> Mapping[str, Stored]:
    """Return every tensor of a model folder in the order of its files; none if it holds no safetensors files.

    Raises: ModelError for an index or a file that is damaged or missing.
    """
    stored: dict[str, Stored] = {}
    for file, names in _files(folder).items():
        if not file.is_file():
            raise ModelError(f"{folder / INDEX} names {file.name}, which is not there")
        with readable(file), safe_open(file, "pt") as opened:
            for name in opened.keys() if names is None else names:
                found = opened.get_slice(name)
                stored[name] = Stored(file, tuple(found.get_shape()), DTYPES.get(found.get_dtype()))
    return stored


def _files(folder: Path) -> Mapping[Path, list[str] | None]:
    """Return the files of a checkpoint with the tensors that its index names in them; None where there is no index."""
    if not (index := folder / INDEX).is_file():
        return {folder / MODEL_WEIGHTS: None} if (folder / MODEL_WEIGHTS).is_file() else {}
    try:
        files: dict[str, list[str]] = {}
        for name, file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
            # the name alone: an index must not lead out of its folder
            files.setdefault(Path(file).name, []).append(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is no index of weights: {error}") from error
    return {folder / file: files[file] for file in sorted(files)}


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Turn what safetensors raises for a file into a ModelError of one line."""
    try:
        yield
    except SafetensorError as error:
        raise ModelError(f"{file} is damaged, cut short or lacks a tensor: {error}") from error


class Reader:
    """Reads tensors, each file opened once until `release`; what it returns is mapped from the file, not copied."""

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self._stored = stored
        self._open: dict[Path, Any] = {}

    def __getitem__(self, name: str) -> Tensor:
        file = self._stored[name].file
        with readable(file):
            if file not in self._open:
                self._open[file] = safe_open(file, "pt")
            tensor: Tensor = self._open[file].get_tensor(name)
        return tensor

    def release(self) -> None:
        """Close every file; pages that were read count as memory only while a file is mapped."""
        self._open.clear()


def model_names(names: Iterable[str], model: nn.Module) -> tuple[dict[str, str], bool]:
    """Return how a transformers model calls each tensor of its checkpoint, and whether it converts others on load.

    It takes the way that from_pretrained takes: renamings of old checkpoints, then the prefix of the base model.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model)  # type: ignore[arg-type]
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    prefix, held = getattr(model, "base_model_prefix", ""), model.state_dict()
    found: dict[str, str] = {}
    converts = False
    for name in names:
        own, pattern = rename_source_key(name, renamings, converters, prefix, held)
        if own not in held and name in held:
            own, pattern = name, None
        converts = converts or pattern is not None
        if own in held and pattern is None:
            found[name] = own
    return found, converts
