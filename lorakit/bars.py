"""Progress in one line that fits its terminal: where there is little room, what says least makes way."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

# a bar of fewer cells shows nothing
SHORTEST = 5


class Fitting(ProgressColumn):
    """Columns side by side; of those in `spare` as many leave, from the first on, as the line is too long for.

    Where that is not enough the first column is shortened.
    """

    def __init__(self, *columns: ProgressColumn, spare: Collection[ProgressColumn] = ()) -> None:
        super().__init__()
        self._columns = columns
        self._spare = spare

    def render(self, task: Task) -> RenderableType:
        return _Line({column: column(task) for column in self._columns}, self._spare)


class _Line:
    def __init__(self, cells: dict[ProgressColumn, RenderableType], spare: Collection[ProgressColumn]) -> None:
        self._cells = cells
        self._spare = spare

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(options.max_width, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        cells = {column: cell for column, cell in self._cells.items() if not isinstance(cell, Text) or cell.plain}
        for column in self._spare:
            if _width(cells.values()) > options.max_width:
                cells.pop(column, None)
        room = options.max_width - _width(cells.values())
        line = Table.grid(padding=(0, 1))
        for cell in cells.values():
            if isinstance(cell, ProgressBar):
                cell.width = min(cell.width or SHORTEST + room, SHORTEST + room)
            elif isinstance(cell, Text) and room < 0:
                cell.truncate(max(1, cell.cell_len + room), overflow="ellipsis")
                room = 0
            line.add_column(no_wrap=True)
        line.add_row(*cells.values())
        yield line


class Labelled(ProgressColumn):
    """A column behind what it is called; nothing where it says nothing."""

    def __init__(self, label: str, column: ProgressColumn) -> None:
        super().__init__()
        self._label = label
        self._column = column

    def render(self, task: Task) -> Text:
        said = self._column.render(task)
        assert isinstance(said, Text)
        return Text(f"{self._label} ").append_text(said) if said.plain else said


def bar(name: TextColumn, *details: ProgressColumn, spare: Collection[ProgressColumn] = ()) -> Fitting:
    """Return the line of a run with an end: what it does, how far it is, and both times; `spare` leave first."""
    drawn = BarColumn()
    return Fitting(name, drawn, *details, _elapsed(), Labelled("left", TimeRemainingColumn()), spare=(*spare, drawn))


def spinner(what: str) -> Fitting:
    """Return the line of work of unknown length, with the time that it has taken."""
    return Fitting(TextColumn(what), SpinnerColumn(), _elapsed())


def _elapsed() -> Labelled:
    return Labelled("elapsed", TimeElapsedColumn())


def _width(cells: Collection[RenderableType]) -> int:
    """Return how many cells of a terminal these take side by side, a bar being as short as it may be."""
    widths = (
        cell.cell_len if isinstance(cell, Text) else SHORTEST if isinstance(cell, ProgressBar) else 1 for cell in cells
    )
    return sum(widths) + len(cells) - 1
