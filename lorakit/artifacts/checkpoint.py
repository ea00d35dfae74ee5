"""The safetensors files of a model folder: found, listed by their index, and read one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.artifacts.json_files import read_object
from lorakit.dtypes import stored_dtype
from lorakit.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MODEL_WEIGHTS = "model.safetensors"
INDEX = f"{MODEL_WEIGHTS}.index.json"
# all that a model folder is made of but its weights
HUB_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "*.py")


@dataclass(frozen=True, eq=False, slots=True)
class StoredTensor:
    """A tensor of a file, read into memory of its own whenever it is indexed; transformers reads checkpoints so."""

    name: str
    file: Path
    opened: Any
    count: Callable[[int], None]

    def __getitem__(self, index: Any) -> Tensor:
        with readable(self.file):
            tensor: Tensor = self.opened.get_slice(self.name)[index]
        self.count(tensor.nbytes)
        return tensor

    def get_dtype(self) -> str:
        """Return the dtype as safetensors calls it, such as `BF16`."""
        with readable(self.file):
            return self.opened.get_slice(self.name).get_dtype()  # type: ignore[no-any-return]

    def get_shape(self) -> list[int]:
        """Return the shape as safetensors gives it."""
        with readable(self.file):
            return self.opened.get_slice(self.name).get_shape()  # type: ignore[no-any-return]

    def is_floating_point(self) -> bool:
        """Return whether these are numbers with a point; transformers takes the model's dtype from the first such."""
        return self.dtype.is_floating_point

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.get_shape())

    @property
    def dtype(self) -> torch.dtype:
        try:
            return stored_dtype(self.get_dtype())
        except ValueError as error:
            raise ModelError(f"`{self.name}` in {self.file} cannot be read: {error}") from error

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def local_folder(reference: str) -> Path:
    """Return the folder of a model given as one, or as a hub id, whose files are fetched. Raises: ModelError."""
    if (folder := Path(reference)).is_dir():
        return folder
    folder = _fetched(reference, HUB_FILES)
    return _fetched(reference, (MODEL_WEIGHTS, *_files(folder)))


def _fetched(reference: str, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(reference, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot fetch the model {reference}: {str(error).partition(chr(10))[0]}") from error


def stored_tensors(folder: Path, progress: Callable[[int, int], None] | None = None) -> Mapping[str, StoredTensor]:
    """Return every tensor of a model folder, unread, in the order of its files; none if it holds no safetensors files.

    `progress` is told the bytes read and the bytes in all.
    Raises: ModelError for an index or a file that is damaged or missing.
    """
    files = _files(folder)
    for file in files:
        if not (folder / file).is_file():
            raise ModelError(f"{folder / INDEX} names {file}, which is not there")
    total = sum((folder / file).stat().st_size for file in files)
    read = 0

    def count(size: int) -> None:
        nonlocal read
        read += size
        if progress is not None:
            progress(read, total)

    stored: dict[str, StoredTensor] = {}
    for file, names in files.items():
        path = folder / file
        with readable(path):
            opened = _opened(path)
            held = dict.fromkeys(opened.keys())
        if missing := next((name for name in names or () if name not in held), None):
            raise ModelError(f"{folder / INDEX} names `{missing}`, which {file} lacks")
        stored |= {name: StoredTensor(name, path, opened, count) for name in names or held}
    return stored


def _files(folder: Path) -> Mapping[str, Sequence[str]]:
    """Return the files that transformers reads, with the tensors that the index names in them; no tensors: all."""
    if (folder / MODEL_WEIGHTS).is_file():
        return {MODEL_WEIGHTS: ()}
    if not (index := folder / INDEX).is_file():
        return {}
    places = read_object(index, "index of weights", ModelError).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ModelError(f"{index} is no index of weights: it has no `weight_map` of names")
    files: dict[str, list[str]] = {}
    for name, file in places.items():
        # the name alone: an index must not lead out of its folder
        files.setdefault(Path(file).name, []).append(name)
    return {file: files[file] for file in sorted(files)}


def _opened(file: Path) -> Any:
    from safetensors import safe_open

    try:
        # a mapped file would stay in the process's memory as far as it was read
        return safe_open(file, "pt", backend="pread")
    except TypeError:
        # safetensors before 0.8 only maps
        return safe_open(file, "pt")


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Turn what safetensors raises for a file into a ModelError of one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is damaged or cut short: {error}") from error
