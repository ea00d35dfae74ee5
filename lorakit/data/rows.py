"""What every reader gives: records as a file holds them, each with its place."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from lorakit.errors import DataError

# what is told how much of a file is read: bytes or letters (done, in all)
Counted: TypeAlias = Callable[[int, int], None]
# rows between two words on how far reading has come
PACE = 500
# longer ones first: one mark begins as another does
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file: `place` says where it stands, as `file:line` where the file has lines."""

    place: str
    values: Mapping[str, Any]


Rows: TypeAlias = Callable[[Path, Counted], Iterator[Row]]


def read_text(path: Path) -> str:
    """Return a text file's content, without the byte order mark that it may begin with.

    Raises: DataError naming the line that is no UTF-8.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    encoding = next((encoding for mark, encoding in _MARKS if raw.startswith(mark)), "utf-8")
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: no UTF-8 text: {error.reason} at byte {error.start}") from error
