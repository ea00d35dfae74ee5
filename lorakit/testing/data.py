"""Checks of data formats and of data shapes: what they make of files and records that are none of theirs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lorakit.data.examples import Chat, Completion, LeftOut, Text
from lorakit.data.fields import Fields
from lorakit.data.rows import Row
from lorakit.errors import DataError
from lorakit.testing.causes import require_all
from lorakit.testing.checks import Check, expect, variants_of

NOISE = random.Random(0).randbytes(512)
# what a file of a format's suffix may hold all the same; None: there is no file
CONTENTS: dict[str, bytes | None] = {
    "missing": None,
    "empty": b"",
    "noise": NOISE,
    "words": b"not what was expected\nat all\n",
    "brackets": b"[{" * 400,
}
# what may stand in a column, as JSON, tables and Arrow give it
VALUES: dict[str, Any] = {
    "text": "words", "number": 7, "fraction": 0.5, "flag": True, "list": [1, "a", None], "object": {"a": {"b": []}},
    "bracket": "[", "lists": [[["a"]]], "objects": [{"role": 3}, {}],
}  # fmt: skip


def data_format_checks(form: Any) -> list[Check]:
    """Return every check of a data format, which is an instance."""
    return list(_format_checks(form))


def check_data_format(form: Any) -> None:
    """Run every check of a data format. Raises: CheckError naming each that failed."""
    require_all(f"data format {getattr(form, 'name', form)}", data_format_checks(form))


def data_shape_checks(shape: Any) -> list[Check]:
    """Return every check of a data shape, which is an instance."""
    return list(_shape_checks(shape))


def check_data_shape(shape: Any) -> None:
    """Run every check of a data shape. Raises: CheckError naming each that failed."""
    require_all(f"data shape {getattr(shape, 'name', shape)}", data_shape_checks(shape))


def _format_checks(form: Any) -> Iterator[Check]:
    yield from variants_of(told, form)
    places = {suffix or "no suffix": (suffix, "") for suffix in form.suffixes}
    places |= {mark: ("", mark) for mark in form.marks}
    variants = {
        f"{place}-{title}": (*where, content)
        for place, where in places.items()
        for title, content in CONTENTS.items()
        # a folder without the mark is none of the format's
        if content is not None or not where[1]
    }
    yield from variants_of(refuses, form, variants)


def told(form: Any) -> None:
    """Files are told by suffixes in small letters that begin with a dot, and folders by the names of files."""
    expect(bool(form.suffixes or form.marks), "it has neither `suffixes` nor `marks`: no file is ever of it")
    for suffix in form.suffixes:
        good = not suffix or (suffix == Path(f"a{suffix}").suffix and suffix == suffix.lower())
        expect(good, f"the suffix {suffix!r} is never found; write the last part of a name, such as `.jsonl`")
    for mark in form.marks:
        expect(bool(mark) and Path(mark).name == mark, f"the mark {mark!r} is no name of a file")


def refuses(form: Any, suffix: str, mark: str, content: bytes | None) -> None:
    """What a file holds that is none of the format's gives rows, or a `lorakit.DataError` that names the file."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "data" if mark else f"data{suffix}")
        if mark:
            path.mkdir()
        if content is not None:
            (path / mark if mark else path).write_bytes(content)
        try:
            for row in form.rows(path, lambda read, total: None):
                expect(isinstance(row, Row), f"`rows` yielded a {type(row).__name__}; yield a `lorakit.hooks.Row`")
                expect(str(path) in row.place, f"the row's place is {row.place!r}, which does not name {path.name}")
        except DataError as error:
            expect(path.name in str(error), f"the error {str(error)!r} does not name the file")


def _shape_checks(shape: Any) -> Iterator[Check]:
    yield from variants_of(columns, shape)
    yield from variants_of(learned, shape, {title: (value,) for title, value in VALUES.items()})


def columns(shape: Any) -> None:
    """`needs` names columns that tell the shape, and no name stands twice in `needs` and `may`."""
    expect(bool(shape.needs), "`needs` is empty: every record would be of this shape")
    names: Sequence[str] = (*shape.needs, *shape.may)
    twice = sorted({name for name in names if names.count(name) > 1})
    expect(not twice, f"{', '.join(twice)} stands twice among `needs` and `may`")


def learned(shape: Any, value: Any) -> None:
    """Any values give an example or a LeftOut of the record's place, or a `lorakit.DataError` that begins with it."""
    for names in (shape.needs, (*shape.needs, *shape.may)):
        fields = Fields("data.jsonl:7", dict.fromkeys(names, value), {})
        try:
            made = shape.example(fields)
        except DataError as error:
            expect(str(error).startswith(fields.place), f"the error {str(error)!r} does not begin with the place")
            continue
        kinds = Text | Completion | Chat | LeftOut
        expect(isinstance(made, kinds), f"`example` returned a {type(made).__name__}; return an example or a LeftOut")
        expect(made.place == fields.place, f"the place of what it returned is {made.place!r}, not the record's")
        texts: tuple[Any, ...] = (made.prompt, made.completion) if isinstance(made, Completion) else ()
        texts = (made.text,) if isinstance(made, Text) else texts
        expect(all(isinstance(text, str) for text in texts), f"what is to be learned of {value!r} is no text: {made}")
        if isinstance(made, Chat):
            expect(len(made.learned) == len(made.messages), "`learned` is not as long as `messages`")
