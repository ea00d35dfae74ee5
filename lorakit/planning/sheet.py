"""Tables that lose nothing: where a terminal is too narrow for one, each row is a record of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from rich.box import SIMPLE_HEAD, Box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lorakit.encoding import encodable

# `prose` may be broken at its blanks, all else stands in one line
Form = Literal["left", "right", "prose"]
# the least that a column of prose is worth, and what stands beside each column
PROSE_WIDTH = 16
PADDING = 3
RECORD_INDENT = 4
PLAIN_HEAD = Box(str(SIMPLE_HEAD).replace("─", "-"), ascii=True)


class Row(NamedTuple):
    """The cells of a row, and how they are shown."""

    cells: tuple[str, ...]
    style: str = ""
    ends_section: bool = False


class Sheet:
    """A table of one form for all that lorakit prints; columns are (header, form).

    A row whose first cell is empty goes on with what the row above is about.
    """

    def __init__(self, *columns: tuple[str, Form]) -> None:
        self.columns = columns
        self.rows: list[Row] = []

    def add_row(self, *cells: str, style: str = "") -> None:
        """Add a row of plain texts, one a column."""
        assert len(cells) == len(self.columns)
        self.rows.append(Row(cells, style))

    def add_section(self) -> None:
        """Part what follows from the rows so far."""
        if self.rows:
            self.rows[-1] = self.rows[-1]._replace(ends_section=True)

    def markdown(self) -> str:
        """Return the table in Markdown."""
        rule = ["---:" if form == "right" else "---" for _, form in self.columns]
        lines = [[header for header, _ in self.columns], rule, *(map(_escaped, row.cells) for row in self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        headers = [encodable(header, options.encoding) for header, _ in self.columns]
        rows = [row._replace(cells=tuple(encodable(cell, options.encoding) for cell in row.cells)) for row in self.rows]
        if self._least_width(headers, rows) <= options.max_width:
            yield self._table(headers, rows, SIMPLE_HEAD if options.encoding.startswith("utf") else PLAIN_HEAD)
        else:
            yield from self._records(headers, rows, options.max_width)

    def _least_width(self, headers: list[str], rows: list[Row]) -> int:
        """Return the cells of a terminal below which the table would break a word."""
        width = 0
        for number, (_, form) in enumerate(self.columns):
            texts = [headers[number], *(row.cells[number] for row in rows)]
            widest = max(map(cell_len, texts))
            if form == "prose":
                words = max((cell_len(word) for text in texts for word in text.split()), default=0)
                widest = max(min(widest, PROSE_WIDTH), words)
            width += widest + PADDING
        return width - 1

    def _table(self, headers: list[str], rows: list[Row], box: Box) -> Table:
        table = Table(box=box, show_edge=False, pad_edge=True, safe_box=False)
        for header, (_, form) in zip(headers, self.columns, strict=True):
            justify: Literal["left", "right"] = "right" if form == "right" else "left"
            table.add_column(Text(header), justify=justify, no_wrap=form != "prose", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row.cells), style=row.style, end_section=row.ends_section)
        return table

    def _records(self, headers: list[str], rows: list[Row], width: int) -> Iterator[Padding]:
        for row in rows:
            first, *others = row.cells
            if first:
                yield Padding(Text(first, style=row.style or "bold", overflow="fold"), (0, 0, 0, 1))
            fields = [f"{header} {cell}".strip() for header, cell in zip(headers[1:], others, strict=True) if cell]
            for line in _lines(fields, width - RECORD_INDENT):
                yield Padding(Text(line, overflow="fold"), (0, 0, 0, RECORD_INDENT))


def _lines(fields: list[str], width: int) -> Iterator[str]:
    """Yield fields in as few lines as hold them; what is longer than a line stands in one of its own."""
    line = ""
    for field in fields:
        longer = f"{line}; {field}" if line else field
        if line and cell_len(longer) > width - 1:
            yield f"{line};"
            longer = field
        line = longer
    yield line


def _escaped(cell: str) -> str:
    for sign in "\\|*<`":
        cell = cell.replace(sign, f"\\{sign}")
    return cell
