"""A place in the run: which file it is in, how that came to be included, and where its problems go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from lorakit.diagnostics import Code, Diagnostic, Span
from lorakit.language.source import SourceText
from lorakit.language.suggestions import nearest

if TYPE_CHECKING:
    from lorakit.language.syntax import Call, Clause, RangeNode, StatementNode, ValueNode, Word

# Beyond this many problems nobody reads suggestions one by one
_ENOUGH = 200


class Extent(NamedTuple):
    """Words that are no node of their own."""

    start: int
    end: int


# what a problem can be with
Words: TypeAlias = "Word | Extent | ValueNode | StatementNode | Call | Clause | RangeNode"


@dataclass(frozen=True)
class Place:
    """A file in the run, the notes on how it was included, and the problems that were found so far in all files."""

    source: SourceText
    problems: list[Diagnostic] = field(default_factory=list)
    chain: tuple[str, ...] = ()

    def span(self, words: Words) -> Span:
        """Return the span of words in this file."""
        return self.source.span(words.start, words.end)

    def nearest(self, word: str, known: Iterable[str]) -> str | None:
        """Return the known word that was probably meant, if any is near."""
        return nearest(word, known) if len(self.problems) < _ENOUGH else None

    def report(self, code: Code, message: str, words: Words, near: str | None = None, *notes: str) -> None:
        """Report a problem with words; `near` is the word that was probably meant."""
        found = self.source.diagnostic(code, message, words.start, words.end, near, (*notes, *self.chain))
        self.problems.append(found)
