"""Records of Arrow's world: parquet and Arrow files, and folders that `datasets` saved."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from lorakit.data.rows import PACE, Counted, Row
from lorakit.errors import DataError

# what `save_to_disk` puts into the folder of one dataset, and into that of several splits
SAVED, SPLITS = "state.json", "dataset_dict.json"
BATCH = 1024
_JSON_TYPE = b'"_type": "Json"'

Decoder: TypeAlias = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def parquet_rows(path: Path, progress: Counted) -> Iterator[Row]:
    """Yield the rows of a parquet file. Raises: DataError."""
    parquet = _package("pyarrow.parquet", path)
    with _Readable(path):
        file = parquet.ParquetFile(path)
        read, rows, size = 0, file.metadata.num_rows, path.stat().st_size
        # a batch's own schema says nothing of what `datasets` stores as JSON
        decode = _decoder(file.schema_arrow, path)
        for batch in file.iter_batches(batch_size=BATCH):
            yield from _rows(batch, decode, path, read)
            read += batch.num_rows
            progress(size * read // rows, size)


def arrow_rows(path: Path, progress: Counted) -> Iterator[Row]:
    """Yield the rows of an Arrow file, or of a stream as `datasets` writes it. Raises: DataError."""
    arrow = _package("pyarrow", path)
    with _Readable(path):
        read = 0
        for batch in _batches(arrow, path):
            yield from _rows(batch, _decoder(batch.schema, path), path, read)
            read += batch.num_rows


def saved_rows(path: Path, progress: Counted) -> Iterator[Row]:
    """Yield the rows of a folder that `save_to_disk` wrote; of several splits those of `train`. Raises: DataError."""
    datasets = _package("datasets", path)
    if (path / SPLITS).is_file():
        path = _split(path)
    with _Readable(path):
        saved = datasets.load_from_disk(str(path))
        size = saved.data.nbytes
        for read, values in enumerate(saved, 1):
            yield _row(values, path, read)
            if read % PACE == 0:
                progress(size * read // len(saved), size)


class _Readable:
    """Turns what Arrow and `datasets` raise over a file into a DataError, around a generator too."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # Arrow's errors are ValueErrors, OSErrors and others, and those of `datasets` are many
        if isinstance(error, Exception) and not isinstance(error, DataError):
            raise DataError(f"cannot read {self._path}: {error}") from error


def _rows(batch: Any, decode: Decoder, path: Path, before: int) -> Iterator[Row]:
    for number, values in enumerate(batch.to_pylist(), before + 1):
        yield _row(decode(values), path, number)


def _row(values: Mapping[str, Any], path: Path, number: int) -> Row:
    return Row(f"{path}, row {number}", {name: _filled(value) for name, value in values.items()})


def _filled(value: Any) -> Any:
    """Return a value without the names that Arrow adds: the items of a list have the fields of all of them."""
    if isinstance(value, dict):
        return {name: _filled(one) for name, one in value.items() if one is not None}
    return [_filled(one) for one in value] if isinstance(value, list) else value


def _batches(arrow: Any, path: Path) -> Iterator[Any]:
    source = arrow.memory_map(str(path))
    try:
        file = arrow.ipc.open_file(source)
    except arrow.ArrowInvalid:
        source.seek(0)
        yield from arrow.ipc.open_stream(source)
        return
    yield from (file.get_batch(number) for number in range(file.num_record_batches))


def _decoder(schema: Any, path: Path) -> Decoder:
    """Return what undoes the storage of `datasets`, which keeps values of mixed types as JSON."""
    if _JSON_TYPE not in (schema.metadata or {}).get(b"huggingface", b""):
        return lambda values: values
    decode: Decoder = _package("datasets", path).Features.from_arrow_schema(schema).decode_example
    return decode


def _split(path: Path) -> Path:
    try:
        splits = json.loads((path / SPLITS).read_text(encoding="utf-8"))["splits"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read {path / SPLITS}: {error}") from error
    if "train" in splits:
        return path / "train"
    if len(splits) == 1:
        return path / str(splits[0])
    raise DataError(f"{path} holds the splits {', '.join(map(str, splits))}: name one, such as {path / str(splits[0])}")


def _package(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise DataError(f"{path}: reading this needs {package}: pip install 'lorakit[data]' ({error})") from error
