"""Records of tables written as text: CSV, and the paragraphs of plain text."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorakit.data.rows import PACE, Counted, Row, read_text
from lorakit.errors import DataError

# as spreadsheets write them, whatever the country
DELIMITERS = ",;\t"
# csv's own bound is 128 KiB a field, which a book or a transcript exceeds
LARGEST_FIELD = 2**31 - 1


def csv_rows(path: Path, progress: Counted) -> Iterator[Row]:
    """Yield the lines of a CSV file under the names of its first one; commas, semicolons or tabs part them.

    Raises: DataError naming the line that does not fit.
    """
    text = read_text(path)
    first = text.lstrip("\r\n").partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(DELIMITERS, key=first.count), strict=True)
    names: list[str] | None = None
    read, lines, size = 0, text.count("\n") + 1, len(text)
    with _long_fields():
        while True:
            place = f"{path}:{reader.line_num + 1}"
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise DataError(f"{place}: no CSV: {error}") from error
            if fields is None:
                return
            if not fields:
                continue
            if names is None:
                names = _names(fields, place)
                continue
            if len(fields) != len(names):
                raise DataError(f"{place}: {len(fields)} fields, where the first line names {len(names)}")
            yield Row(place, dict(zip(names, fields, strict=True)))
            read += 1
            if read % PACE == 0:
                progress(size * reader.line_num // lines, size)


def paragraphs(path: Path, progress: Counted) -> Iterator[Row]:
    """Yield the paragraphs of a text, which blank lines part, as {"text": …}. Raises: DataError."""
    line = 1
    for block in read_text(path).replace("\r\n", "\n").split("\n\n"):
        if paragraph := block.strip():
            blank = block[: block.index(paragraph[0])].count("\n")
            yield Row(f"{path}:{line + blank}", {"text": paragraph})
        line += block.count("\n") + 2


def _names(fields: list[str], place: str) -> list[str]:
    names = [field.strip() for field in fields]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{place}: two columns are called `{twice[0]}`")
    return names


@contextmanager
def _long_fields() -> Iterator[None]:
    before = csv.field_size_limit(LARGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)
