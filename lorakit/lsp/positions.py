"""Positions: offsets in code points, as the language counts, and the positions that a client counts.

A client's lines end at `\\n`, `\\r\\n` and `\\r`, its columns are in the units of an encoding.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import cached_property

from lsprotocol import types

BOM = "\ufeff"

_LINE_END = re.compile(r"\r\n|\n|\r")

# An astral character is two units of UTF-16; a lone surrogate, which no encoding holds, counts as it would in one
_UNITS: Mapping[str, Callable[[str], int]] = {
    types.PositionEncodingKind.Utf32: len,
    types.PositionEncodingKind.Utf16: lambda text: len(text.encode("utf-16-le", "surrogatepass")) // 2,
    types.PositionEncodingKind.Utf8: lambda text: len(text.encode("utf-8", "surrogatepass")),
}


class Positions:
    """The positions of one text; offsets do not count a byte order mark, positions do where the client sent one."""

    def __init__(self, text: str, encoding: str) -> None:
        self._text = text
        self._units = _UNITS[encoding]
        self._mark = len(BOM) if text.startswith(BOM) else 0

    @cached_property
    def _lines(self) -> tuple[list[int], list[int]]:
        """Where each line begins, and where it ends without its line end."""
        ends = list(_LINE_END.finditer(self._text))
        return [0, *(end.end() for end in ends)], [*(end.start() for end in ends), len(self._text)]

    def position(self, offset: int) -> types.Position:
        """Return the position of an offset."""
        starts, ends = self._lines
        place = offset + self._mark
        line = bisect_right(starts, place) - 1
        return types.Position(line, self._units(self._text[starts[line] : min(place, ends[line])]))

    def range(self, start: int, end: int) -> types.Range:
        """Return the range from one offset to another."""
        return types.Range(self.position(start), self.position(end))

    def offset(self, position: types.Position) -> int:
        """Return the offset of a position, kept inside the text; inside of a character it is where that begins."""
        starts, ends = self._lines
        if position.line >= len(starts):
            return len(self._text) - self._mark
        start = starts[position.line]
        return max(0, start + self._column(self._text[start : ends[position.line]], position.character) - self._mark)

    def _column(self, line: str, units: int) -> int:
        if line.isascii():
            return min(units, len(line))
        counted = 0
        for column, character in enumerate(line):
            counted += self._units(character)
            if counted > units:
                return column
        return len(line)
