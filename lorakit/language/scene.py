"""The scene of a syntax error, and the complaint that is made about it."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cached_property

from lorakit.diagnostics import Code, Diagnostic, advised, diagnostic_at
from lorakit.language.expectations import expectation, expected_name
from lorakit.language.source import SourceText
from lorakit.language.syntax import Word

_FOUND = re.compile(r'\w+|"(?:\\.|[^"\\\n])*"?|\'[^\'\n]*\'|\.\.|[<>=!]=|.', re.DOTALL)


@dataclass(frozen=True)
class Complaint:
    """A diagnostic in the making, with offsets."""

    code: Code
    message: str
    start: int
    end: int
    near: str | None = None
    notes: tuple[str, ...] = ()

    def diagnostic(self, source: SourceText) -> Diagnostic:
        suggestion, notes = advised(self.near, self.notes)
        return diagnostic_at(
            self.code, self.message, source.span(self.start, self.end), suggestion=suggestion, notes=notes
        )


@dataclass(frozen=True)
class Scene:
    """The place at which reading stopped: what was read before, and which terminals could have followed."""

    source: SourceText
    offset: int
    accepted: Set[str]
    tokens: Sequence[Word]
    brace: Word | None

    @cached_property
    def found(self) -> str:
        """The word that stands there, empty at the end of a line."""
        if self.at_end:
            return ""
        match = _FOUND.match(self.source.text, self.offset)
        return match[0] if match else ""

    @property
    def at_end(self) -> bool:
        return self.source.text[self.offset : self.offset + 1] in ("", "\n")

    @property
    def end(self) -> int:
        return self.offset + len(self.found)

    @property
    def previous(self) -> Word | None:
        """The token before, unless that ended a statement."""
        if self.tokens and self.tokens[-1].type not in ("_END", "LBRACE", "ERROR"):
            return self.tokens[-1]
        return None

    @property
    def behind(self) -> str:
        return f" behind {shown(self.previous)}" if self.previous is not None else ""

    @property
    def expected(self) -> str:
        return expectation(self.accepted, expected_name(self.tokens))

    def complain(
        self, code: Code, message: str, near: str | None = None, *notes: str, end: int | None = None
    ) -> Complaint:
        """Return a complaint about the words found."""
        return Complaint(code, message, self.offset, self.end if end is None else end, near, notes)


def shown(words: str | None, longest: int = 40) -> str:
    """Return words from the source in backquotes, shortened where they are long."""
    words = (words or "").split("\n", 1)[0]
    return f"`{words}`" if len(words) <= longest else f"`{words[:longest]}…`"
