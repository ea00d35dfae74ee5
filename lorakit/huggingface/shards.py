"""The safetensors files of a model folder, read one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class StoredTensor:
    """A tensor of a file, read into memory of its own whenever it is indexed, as transformers reads a checkpoint."""

    def __init__(self, file: Any, path: Path, name: str, count: Callable[[int], None]) -> None:
        self._file, self._path, self._name, self._count = file, path, name, count

    def __getitem__(self, index: Any) -> Tensor:
        from safetensors import SafetensorError

        try:
            tensor: Tensor = self._file.get_slice(self._name)[index]
        except (SafetensorError, OSError) as error:
            raise ModelError(f"`{self._name}` in {self._path} cannot be read: {error}") from error
        self._count(tensor.nbytes)
        return tensor

    def get_dtype(self) -> str:
        """Return the dtype as safetensors calls it, such as `BF16`."""
        return self._file.get_slice(self._name).get_dtype()  # type: ignore[no-any-return]

    def get_shape(self) -> list[int]:
        return self._file.get_slice(self._name).get_shape()  # type: ignore[no-any-return]

    def is_floating_point(self) -> bool:
        return "F" in self.get_dtype()

    @property
    def dtype(self) -> torch.dtype:
        return self._file.get_slice(self._name)[:0].dtype  # type: ignore[no-any-return]


def shard_paths(model: str) -> list[Path]:
    """Return the safetensors files of a local folder or hub id, fetched if need be; none if it has no such weights."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
    from transformers.utils.hub import cached_file

    def find(name: str, needed: bool = False) -> Path | None:
        found = cached_file(model, name, _raise_exceptions_for_missing_entries=needed)
        return Path(found) if found else None

    if whole := find(SAFE_WEIGHTS_NAME):
        return [whole]
    if not (index := find(SAFE_WEIGHTS_INDEX_NAME)):
        return []
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is no index of shards: {error}") from error
    return [path for name in sorted(names) if (path := find(name, needed=True))]


def stored_tensors(
    paths: Sequence[Path], progress: Callable[[int, int], None] | None = None
) -> dict[str, StoredTensor]:
    """Return every tensor of some files by name, unread; `progress` is told the bytes read and the bytes in all."""
    total = sum(path.stat().st_size for path in paths)
    read = 0

    def count(size: int) -> None:
        nonlocal read
        read += size
        if progress is not None:
            progress(read, total)

    found: dict[str, StoredTensor] = {}
    for path in paths:
        file = _open(path)
        found |= {name: StoredTensor(file, path, name, count) for name in file.keys()}  # noqa: SIM118
    return found


def _open(path: Path) -> Any:
    from safetensors import safe_open

    try:
        # a mapped file would stay in the process's memory as far as it was read
        return safe_open(path, "pt", backend="pread")
    except TypeError:
        # safetensors before 0.8 only maps
        return safe_open(path, "pt")
