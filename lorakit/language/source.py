"""Source text: what bytes say, and where in it an offset stands."""

from __future__ import annotations

import codecs
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from lorakit.diagnostics import Code, Diagnostic, Span, advised, diagnostic_at

# how the command line takes a variable; what its text is called begins so
OPTION = "--set "
# Whatever is larger is no spec, and reading it would take long
MAX_SIZE = 2**20

_SAVE = "save the file as UTF-8"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class SourceText:
    """A named text. Lines end at `\\n` or `\\r\\n` only; `str.splitlines` knows more ends than a reader sees."""

    name: str
    text: str

    @cached_property
    def _line_starts(self) -> list[int]:
        return [0, *(match.end() for match in re.finditer("\n", self.text))]

    def position(self, offset: int) -> tuple[int, int]:
        """Return the 1-based line and column, in code points, of an offset."""
        line = bisect_right(self._line_starts, offset)
        return line, offset - self._line_starts[line - 1] + 1

    def offset(self, line: int, column: int) -> int:
        """Return the offset of a 1-based line and column, kept inside the text."""
        if line > len(self._line_starts):
            return len(self.text)
        return min(self._line_starts[max(line, 1) - 1] + column - 1, len(self.text))

    def span(self, start: int, end: int) -> Span:
        """Return the span from one offset to another, the end exclusive."""
        starts = self._line_starts
        line = bisect_right(starts, start)
        line_start = starts[line - 1]
        if line < len(starts) and end >= starts[line]:
            return Span(self.name, line, start - line_start + 1, *self.position(end))
        return Span(self.name, line, start - line_start + 1, line, end - line_start + 1)

    def diagnostic(
        self, code: Code, message: str, start: int, end: int, near: str | None = None, notes: Sequence[str] = ()
    ) -> Diagnostic:
        """Return a diagnostic of the words from one offset to another; `near` is the word that was probably meant."""
        suggestion, rest = advised(near, notes)
        return diagnostic_at(code, message, self.span(start, end), suggestion=suggestion, notes=rest)

    def line(self, number: int) -> str:
        """Return a line by its 1-based number, without its end; empty beyond the last."""
        if not 1 <= number <= len(self._line_starts):
            return ""
        start = self._line_starts[number - 1]
        end = self._line_starts[number] if number < len(self._line_starts) else len(self.text)
        return self.text[start:end].removesuffix("\n").removesuffix("\r")


class Damage(NamedTuple):
    """Why a text cannot be read whole, and from which offset into what was decoded of it."""

    code: Code
    offset: int
    message: str
    help: str


def decode(data: bytes | str) -> tuple[str, Damage | None]:
    """Return the text of a file without its byte order mark, and what was wrong with the bytes, if anything."""
    if len(data) > MAX_SIZE:
        message = f"this spec is larger than {MAX_SIZE // 2**20} MiB"
        return "", Damage(Code.TOO_LARGE, 0, message, "split it into files, and `include` them")
    if isinstance(data, str):
        return data.removeprefix("\ufeff"), None
    if data.startswith(_UTF16):
        return "", Damage(Code.NOT_UTF8, 0, "this file is UTF-16, and a spec is UTF-8", _SAVE)
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode(), None
    except UnicodeDecodeError as error:
        offset = len(data[: error.start].decode())
        message = f"the byte 0x{data[error.start]:02X} is not UTF-8"
        return data.decode(errors="replace"), Damage(Code.NOT_UTF8, offset, message, _SAVE)
