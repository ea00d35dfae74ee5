"""Records of JSON files: one a line, or the items of an array."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorakit.data.rows import PACE, Counted, Row, read_text
from lorakit.errors import DataError

# JSON may write half of a pair that stands for one character: no encoding takes it
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_BLANK = re.compile(r"[ \t\r\n]*")
_NEXT = re.compile(r"[ \t\r\n]*,[ \t\r\n]*")


def json_rows(path: Path, progress: Counted) -> Iterator[Row]:
    """Yield the objects of a JSON file: the items of one array, or objects behind each other, a line each or not.

    Raises: DataError naming the line that does not fit.
    """
    text = read_text(path)
    at, end, line, counted = _past(_BLANK, text, 0), len(text), 1, 0
    array = text.startswith("[", at)
    at += array
    at = _past(_BLANK, text, at)
    number = 0
    while at < end and not (array and text[at] == "]"):
        line, counted = line + text.count("\n", counted, at), at
        place = f"{path}:{line}"
        value, after = _value(text, at, path)
        if not isinstance(value, dict):
            raise DataError(f"{place}: a record is a JSON object; this is {_kind(value)}")
        if _HALF.search(text, at, after):
            _check_characters(value, place)
        yield Row(place, value)
        at = _past(_BLANK, text, after)
        if array and not text.startswith("]", at):
            at = _behind_comma(text, at, path)
        number += 1
        if number % PACE == 0:
            progress(at, end)
    if array and _past(_BLANK, text, at + 1) < end:
        raise DataError(f"{path}:{_line(text, at)}: something follows the array")


def _value(text: str, at: int, path: Path) -> tuple[Any, int]:
    try:
        return json.JSONDecoder().raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: no JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{_line(text, at)}: JSON that cannot be read: {error}") from error


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
