"""Which shape a record has, told by its columns, and what is learned from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lorakit.data.examples import Chat, Completion, Example, LeftOut, Text
from lorakit.data.fields import Columns, Fields
from lorakit.data.rows import Row
from lorakit.errors import DataError, LorakitError, PluginError
from lorakit.language.suggestions import listed, nearest
from lorakit.quoting import named

if TYPE_CHECKING:
    from lorakit.hooks import DataShape, Plugins


def read_columns(text: str, plugins: Plugins) -> Columns:
    """Return what `--columns prompt=question,completion=answer` says. Raises: DataError."""
    shapes = plugins.data_shapes
    names = tuple(dict.fromkeys(name for shape in shapes for name in (*shape.needs, *shape.may)))
    columns: dict[str, str] = {}
    for word in text.split(","):
        name, equals, column = (part.strip() for part in word.partition("="))
        if not equals or not column:
            raise DataError(f"--columns {text}: write NAME=COLUMN, such as prompt=question,completion=answer")
        if name not in names:
            known = listed(names, "and")
            raise DataError(f"--columns: lorakit knows no name {named(name)}{_meant(name, names)}; it knows {known}")
        columns[name] = column
    if not any(set(shape.needs) <= columns.keys() for shape in shapes):
        raise DataError(f"--columns {text} names no whole record; one is {_forms(plugins)}")
    return columns


def shape_of(row: Row, columns: Columns, plugins: Plugins) -> DataShape:
    """Return the shape of a record: of what the columns name alone, where they are given. Raises: DataError."""
    names = columns.keys() if columns else row.values.keys()
    fitting = [shape for shape in plugins.data_shapes if names >= set(shape.needs)]
    if not fitting:
        raise DataError(
            f"{row.place}: a record is {_forms(plugins)}; this one has {_names(row)}; say which column is what, "
            "such as --columns prompt=question,completion=answer"
        )
    for name in fitting[0].needs:
        column = columns.get(name, name)
        if column not in row.values:
            meant = _meant(column, row.values)
            raise DataError(f"{row.place}: no column {named(column)}{meant}; it has {_names(row)}")
    # what holds nothing tells no shape while another does
    filled = (shape for shape in fitting if all(row.values.get(columns.get(name, name)) for name in shape.needs))
    return next(filled, fitting[0])


def example_of(row: Row, shape: DataShape, columns: Columns, plugins: Plugins) -> Example | LeftOut:
    """Return what is learned from a record of this shape.

    Raises: DataError naming its place, PluginError naming the plugin of a shape that fails.
    """
    values = {}
    for name in (*shape.needs, *shape.may):
        column = columns.get(name, name)
        if column in row.values:
            values[name] = row.values[column]
    for name in shape.needs:
        # a prompt may be empty: a text then begins with what is learned
        if name != "prompt" and not values[name]:
            return LeftOut(row.place, f"with nothing in `{columns.get(name, name)}`")
    try:
        made = shape.example(Fields(row.place, values, columns))
    except LorakitError:
        raise
    except Exception as error:
        raise PluginError(f"{_blamed(shape, row, plugins)} failed: {type(error).__name__}: {error}") from error
    if not isinstance(made, Text | Completion | Chat | LeftOut):
        raise PluginError(
            f"{_blamed(shape, row, plugins)} returned a {type(made).__name__}; it is to return a Text, a Completion, "
            "a Chat or a LeftOut"
        )
    return made


def _blamed(shape: DataShape, row: Row, plugins: Plugins) -> str:
    return f"{row.place}: plugin {plugins.origin(shape)}: the data shape `{shape.name}`"


def _forms(plugins: Plugins) -> str:
    return ", ".join(" + ".join(f"`{name}`" for name in shape.needs) for shape in plugins.data_shapes)


def _meant(word: str, known: Iterable[str]) -> str:
    near = nearest(word, known)
    return f", did you mean {named(near)}?" if near else ""


def _names(row: Row) -> str:
    return ", ".join(named(name) for name in row.values) or "nothing"
