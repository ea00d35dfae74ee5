"""What the checks report to, and where in which file they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from lorakit.diagnostics import Code, Diagnostic, Span, advised, diagnostic_at
from lorakit.language.source import SourceText
from lorakit.language.suggestions import nearest
from lorakit.language.syntax import Word

# Beyond this many problems nobody reads suggestions one by one
_ENOUGH = 200


@dataclass
class Problems:
    """Collects the diagnostics of one run."""

    found: list[Diagnostic] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """A file in the run: its text, how it came to be included, and where its problems go."""

    source: SourceText
    problems: Problems
    chain: tuple[str, ...] = ()

    def span(self, start: int, end: int) -> Span:
        return self.source.span(start, end)

    def word_span(self, word: Word) -> Span:
        return self.source.span(word.start, word.end)

    def nearest(self, word: str, known: Iterable[str]) -> str | None:
        """Return the known word that was probably meant, if any is near."""
        return nearest(word, known) if len(self.problems.found) < _ENOUGH else None

    def report(self, code: Code, message: str, start: int, end: int, near: str | None = None, *notes: str) -> None:
        """Report a problem with the words from one offset to another; `near` is the word that was probably meant."""
        suggestion, rest = advised(near, notes)
        span = self.source.span(start, end)
        self.problems.found.append(
            diagnostic_at(code, message, span, suggestion=suggestion, notes=(*rest, *self.chain))
        )

    def report_word(self, code: Code, message: str, word: Word, near: str | None = None, *notes: str) -> None:
        """Report a problem with one word."""
        self.report(code, message, word.start, word.end, near, *notes)
