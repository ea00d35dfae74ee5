"""Which format a file or folder of data is of, and the records in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.data.rows import Counted, Row
from lorakit.errors import DataError, LorakitError, PluginError
from lorakit.language.suggestions import listed

if TYPE_CHECKING:
    from lorakit.hooks import DataFormat, Plugins

# how files of splits are called
TRAIN, HELD_OUT = frozenset({"train"}), frozenset({"test", "validation", "valid", "val", "eval", "dev"})


def read_rows(path: Path, plugins: Plugins, progress: Counted = lambda done, total: None) -> Iterator[Row]:
    """Yield the records of a file, or of a folder of such files.

    Raises: DataError naming file and line, PluginError naming the plugin of a format that fails.
    """
    for file, form in _parts(path, plugins):
        yield from _rows(file, form, plugins, progress)


def _rows(file: Path, form: DataFormat, plugins: Plugins, progress: Counted) -> Iterator[Row]:
    blamed = f"{file}: plugin {plugins.origin(form)}: the data format `{form.name}`"
    try:
        for row in form.rows(file, progress):
            if not isinstance(row, Row):
                raise PluginError(f"{blamed} gave a {type(row).__name__}; it is to give a Row for each record")
            yield row
    except LorakitError:
        raise
    except Exception as error:
        raise PluginError(f"{blamed} failed: {type(error).__name__}: {error}") from error


def _parts(path: Path, plugins: Plugins) -> list[tuple[Path, DataFormat]]:
    try:
        if path.is_file():
            return [(path, _form(path, plugins))]
        if not path.is_dir():
            raise DataError(f"no such data file: {path}")
        forms = plugins.data_formats.values()
        form = next((form for form in forms if any((path / mark).is_file() for mark in form.marks)), None)
        return [(path, form)] if form else _files(path, plugins)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _form(path: Path, plugins: Plugins) -> DataFormat:
    suffix = path.suffix.lower()
    form = next((form for form in plugins.data_formats.values() if suffix in form.suffixes), None)
    if form is None:
        reasons = "".join(f"; {reason}" for reason in plugins.absence("data format", suffix))
        known = _known(plugins)
        raise DataError(f"{path}: what ends in {suffix} is no data that lorakit reads; it reads {known}{reasons}")
    return form


def _files(folder: Path, plugins: Plugins) -> list[tuple[Path, DataFormat]]:
    """Return the data files in a folder: those of its `train` split where files are named so, or all of one format."""
    searched = (form for form in plugins.data_formats.values() if not getattr(form, "named_only", False))
    known = {suffix for form in searched for suffix in form.suffixes}
    inside = (file for file in sorted(folder.rglob("*")) if file.suffix.lower() in known and file.is_file())
    files = [file for file in inside if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    chosen = [file for file in files if _words(file.relative_to(folder)) & TRAIN] or files
    if not chosen:
        raise DataError(f"{folder} holds no data that lorakit reads; it reads {_known(plugins)}")
    if held := next((file for file in chosen if _words(file.relative_to(folder)) & HELD_OUT), None):
        raise DataError(f"{folder} holds {held.relative_to(folder)} and nothing named train: name the file to read")
    forms = {_form(file, plugins).name for file in chosen}
    if len(forms) > 1:
        raise DataError(f"{folder} holds {' and '.join(sorted(forms))}; name one file, or a folder of one format")
    return [(file, _form(file, plugins)) for file in chosen]


def _words(file: Path) -> frozenset[str]:
    return frozenset([*file.parts[:-1], *re.split(r"[-_.]", file.stem.lower())])


def _known(plugins: Plugins) -> str:
    forms = plugins.data_formats.values()
    suffixes = [suffix for form in forms for suffix in form.suffixes if suffix]
    folders = [form.name for form in forms if form.marks]
    return f"{' '.join(suffixes)} and folders of {listed(folders, 'and')}"
