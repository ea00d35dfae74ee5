"""Records of JSON files: one a line, or the items of an array."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from lorakit.data.rows import PACE, Counted, Row, read_text
from lorakit.errors import DataError

# JSON may write half of a pair that stands for one character: no encoding takes it
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\r\n]*")
_NEXT = re.compile(r"[ \t\r\n]*,[ \t\r\n]*")

# a value, and where in the text it starts and ends
Value: TypeAlias = tuple[Any, int, int]


def json_rows(path: Path, progress: Counted) -> Iterator[Row]:
    """Yield the objects of a JSON file: the items of one array, or one object a line; in `.json` it may take more.

    Raises: DataError naming the line that does not fit.
    """
    text = read_text(path)
    array = text.startswith("[", _past(_BLANK, text, 0))
    values = _items if array else _objects if path.suffix.lower() == ".json" else _lines
    line, counted = 1, 0
    for number, (value, start, end) in enumerate(values(text, path), 1):
        line, counted = line + text.count("\n", counted, start), start
        place = f"{path}:{line}"
        if not isinstance(value, dict):
            raise DataError(f"{place}: a record is a JSON object; this is {_kind(value)}")
        if _HALF.search(text, start, end):
            _check_characters(value, place)
        yield Row(place, value)
        if number % PACE == 0:
            progress(end, len(text))


def _lines(text: str, path: Path) -> Iterator[Value]:
    # what is missing at the end of a line is not to be looked for in the next
    at = 0
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _of_line(line, f"{path}:{number}"), at, at + len(line)
        at += len(line) + 1


def _objects(text: str, path: Path) -> Iterator[Value]:
    at = _past(_BLANK, text, 0)
    while at < len(text):
        value, end = _value(text, at, path)
        yield value, at, end
        at = _past(_BLANK, text, end)


def _items(text: str, path: Path) -> Iterator[Value]:
    at = _past(_BLANK, text, text.index("[") + 1)
    while not text.startswith("]", at):
        value, end = _value(text, at, path)
        yield value, at, end
        at = _past(_BLANK, text, end)
        if not text.startswith("]", at):
            at = _behind_comma(text, at, path)
    if (behind := _past(_BLANK, text, at + 1)) < len(text):
        raise DataError(f"{path}:{_line(text, behind)}: something follows the array")


def _value(text: str, at: int, path: Path) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: no JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{_line(text, at)}: JSON that cannot be read: {error}") from error


def _of_line(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: no JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: JSON that cannot be read: {error}") from error


def _behind_comma(text: str, at: int, path: Path) -> int:
    found = _NEXT.match(text, at)
    if found is None:
        what = "the array does not end" if at >= len(text) else "a comma or `]` is missing"
        raise DataError(f"{path}:{_line(text, at)}: no JSON: {what}")
    return found.end()


def _check_characters(value: dict[str, Any], place: str) -> None:
    for name, one in value.items():
        try:
            json.dumps({name: one}, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])
            raise DataError(f"{place}: `{name}` holds {half}, which is half of a character and no text") from error


def _past(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _kind(value: Any) -> str:
    words = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return words.get(type(value), "null")
