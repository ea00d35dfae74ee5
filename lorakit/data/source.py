"""A data file read: the examples in it, and the records that hold none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.data.examples import Example, LeftOut, require_kept
from lorakit.data.fields import Columns
from lorakit.data.formats import read_rows
from lorakit.data.shapes import example_of, shape_of
from lorakit.errors import DataError
from lorakit.language.suggestions import listed
from lorakit.quoting import named
from lorakit.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from lorakit.hooks.manager import Plugins


@dataclass(frozen=True, slots=True)
class Reading:
    """How data is read: which column is what, and the share of records that may have nothing to learn."""

    columns: Columns = field(default_factory=dict)
    max_left_out: float = 0.5


@dataclass(frozen=True, slots=True)
class Data:
    """What a file holds: examples and records left out in order, records by shape, and columns that no shape has."""

    name: str
    examples: tuple[Example, ...]
    left_out: tuple[LeftOut, ...]
    forms: Mapping[str, int]
    unread: tuple[str, ...]
    reading: Reading

    @property
    def description(self) -> str:
        """The records in words."""
        forms = ", ".join(f"{count:,} {form}" for form, count in self.forms.items())
        unread = f"; not read: {listed(self.unread, 'and')}" if self.unread else ""
        return f"{self.name}: {forms}{unread}"


def read_data(path: Path, plugins: Plugins, reading: Reading = Reading(), reporter: Reporter = SILENT) -> Data:
    """Return the examples in a file or folder.

    Raises: DataError naming file and line, or where more records hold nothing than `reading` lets pass,
    PluginError naming the plugin of a format or shape that fails.
    """
    examples: list[Example] = []
    left_out: list[LeftOut] = []
    forms: Counter[str] = Counter()
    names: dict[str, None] = {}
    used: set[str] = set(reading.columns.values())
    with reporter.measured(f"reading {path}") as progress:
        for row in read_rows(path, plugins, progress or (lambda done, total: None)):
            shape = shape_of(row, reading.columns, plugins)
            forms[shape.name] += 1
            names.update(dict.fromkeys(row.values))
            used.update(reading.columns.get(name, name) for name in (*shape.needs, *shape.may))
            made = example_of(row, shape, reading.columns, plugins)
            if isinstance(made, LeftOut):
                left_out.append(made)
            else:
                examples.append(made)
    total = len(examples) + len(left_out)
    if not total:
        raise DataError(f"{path} holds no text")
    _require_columns(path, reading.columns, names)
    require_kept(str(path), total, left_out, reading.max_left_out)
    unread = tuple(name for name in names if name not in used)
    return Data(str(path), tuple(examples), tuple(left_out), dict(forms), unread, reading)


def _require_columns(path: Path, columns: Columns, names: Iterable[str]) -> None:
    for name, column in columns.items():
        if column not in names:
            raise DataError(f"{path}: --columns {name}={column}, and no record has a column {named(column)}")
