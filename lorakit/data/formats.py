"""The formats that data comes in, and which of them a file or folder is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorakit.data.arrow_rows import SAVED, SPLITS, arrow_rows, parquet_rows, saved_rows
from lorakit.data.json_rows import json_rows
from lorakit.data.rows import Counted, Row, Rows
from lorakit.data.table_rows import csv_rows, paragraphs
from lorakit.errors import DataError

# how files of splits are called
TRAIN, HELD_OUT = frozenset({"train"}), frozenset({"test", "validation", "valid", "val", "eval", "dev"})


@dataclass(frozen=True, slots=True)
class Format:
    """A format and what reads it: files by the end of their name, folders by a file that they hold."""

    name: str
    rows: Rows
    suffixes: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()


FORMATS = (
    Format("JSON", json_rows, (".jsonl", ".json", ".ndjson")),
    Format("CSV", csv_rows, (".csv", ".tsv")),
    Format("parquet", parquet_rows, (".parquet",)),
    Format("Arrow", arrow_rows, (".arrow",)),
    Format("plain text", paragraphs, (".txt", ".text", ".md", "")),
    Format("a folder of `datasets`", saved_rows, marks=(SAVED, SPLITS)),
)


def read_rows(path: Path, progress: Counted = lambda done, total: None) -> Iterator[Row]:
    """Yield the records of a file, or of a folder of such files. Raises: DataError naming file and line."""
    for file, form in _parts(path):
        yield from form.rows(file, progress)


def _parts(path: Path) -> list[tuple[Path, Format]]:
    try:
        if path.is_file():
            return [(path, _form(path))]
        if not path.is_dir():
            raise DataError(f"no such data file: {path}")
        form = next((form for form in FORMATS if any((path / mark).is_file() for mark in form.marks)), None)
        return [(path, form)] if form else _files(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _form(path: Path) -> Format:
    suffix = path.suffix.lower()
    form = next((form for form in FORMATS if suffix in form.suffixes), None)
    if form is None:
        raise DataError(f"{path}: what ends in {suffix} is no data that lorakit reads; it reads {_known()}")
    return form


def _files(folder: Path) -> list[tuple[Path, Format]]:
    """Return the data files in a folder: those of its `train` split where files are named so, or all of one format."""
    known = {suffix for form in FORMATS for suffix in form.suffixes if suffix not in (".md", ".txt", ".text", "")}
    inside = (file for file in sorted(folder.rglob("*")) if file.suffix.lower() in known and file.is_file())
    files = [file for file in inside if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    chosen = [file for file in files if _words(file.relative_to(folder)) & TRAIN] or files
    if not chosen:
        raise DataError(f"{folder} holds no data that lorakit reads; it reads {_known()}")
    if held := next((file for file in chosen if _words(file.relative_to(folder)) & HELD_OUT), None):
        raise DataError(f"{folder} holds {held.relative_to(folder)} and nothing named train: name the file to read")
    forms = {_form(file).name for file in chosen}
    if len(forms) > 1:
        raise DataError(f"{folder} holds {' and '.join(sorted(forms))}; name one file, or a folder of one format")
    return [(file, _form(file)) for file in chosen]


def _words(file: Path) -> frozenset[str]:
    return frozenset([*file.parts[:-1], *re.split(r"[-_.]", file.stem.lower())])


def _known() -> str:
    suffixes = [suffix for form in FORMATS for suffix in form.suffixes if suffix]
    return f"{' '.join(suffixes)} and folders that `datasets` saved"
