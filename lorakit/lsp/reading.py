"""Reading up to a cursor: the words of its statement before it, and what the grammar allows there.

A syntax tree has no words behind an error; here reading goes on at the next clause, since people write in any order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from lorakit.language.machine import Machine, ignored, matcher
from lorakit.language.syntax import CLOSING, OPENING, SyntaxTree, Word
from lorakit.language.words import CLAUSES, STATEMENT_TERMINALS

_RESUME = re.compile(rf'"(?:\\.|[^"\\\n])*"?|#[^\n]*|(?<![^\s;{{)])(?P<clause>{"|".join(CLAUSES)})\b')


@dataclass(frozen=True)
class Cursor:
    """A place where a word may be written: it would begin at `start`, behind these words of its statement.

    `accepted` are the terminals that the grammar allows there; `given` are those of the statement's other words.
    """

    start: int
    words: tuple[Word, ...]
    accepted: Set[str]
    given: Set[str]

    @property
    def statement(self) -> str:
        """The keyword of the statement, empty where the word would begin one."""
        return str(self.words[0]) if self.words else ""


def statements(tokens: Sequence[Word]) -> Iterator[list[Word]]:
    """Yield the tokens of each statement, without the line ends between statements."""
    current: list[Word] = []
    inside = False
    for token in tokens:
        ends = token.type == "_END" and not inside
        if (ends or token.type in STATEMENT_TERMINALS) and current:
            yield current
            current = []
        if not ends:
            current.append(token)
            inside = bool(current) and _inside(token, inside)
    if current:
        yield current


def cursor_at(tree: SyntaxTree, offset: int) -> Cursor | None:
    """Return the cursor at an offset, whose word may have begun before it; None in comments and strings."""
    target, name = (_begin(tree.source.text, offset, others) for others in ("_*.@:-]", "_"))
    cursor = _cursor(tree, target)
    if target == name or (cursor is not None and "TARGET" in cursor.accepted):
        return cursor
    return _cursor(tree, name)


def word_at(tree: SyntaxTree, offset: int) -> tuple[tuple[Word, ...], Word] | None:
    """Return the word at an offset and those of its statement before it, or None where there is no word."""
    reader = _Reader(tree, tree.source.text, offset)
    reader.read()
    words = reader.words
    if words and words[-1].start > offset:
        words.pop()
    if words and words[-1].end >= offset and words[-1].type != "_END":
        return tuple(words[:-1]), words[-1]
    return None


def unclosed(words: Sequence[Word]) -> list[int]:
    """Return where among these words the brackets stand that are still open."""
    opened: list[int] = []
    for index, word in enumerate(words):
        if word.type in OPENING:
            opened.append(index)
        elif word.type in CLOSING and opened:
            opened.pop()
    return opened


def _begin(text: str, end: int, others: str) -> int:
    """Return where the letters, digits and other characters before an offset begin; a `]` brings its `[ ]` along."""
    while end and (text[end - 1].isalnum() or text[end - 1] in others):
        end -= 1
        if text[end] == "]":
            opening = text.rfind("[", text.rfind("\n", 0, end) + 1, end)
            if opening < 0:
                return end + 1
            end = opening
    return end


def _cursor(tree: SyntaxTree, start: int) -> Cursor | None:
    reader = _Reader(tree, tree.source.text[:start], start)
    if not reader.read():
        return None
    words = reader.words
    whole = next((one for one in statements(tree.tokens) if words and one[0] is words[0]), [])
    given = {word.type for word in (*words, *whole) if word.start != start}
    return Cursor(start, tuple(words), reader.machine.accepted(), given)


class _Reader:
    """Reads the statement at an offset up to there, over what is at fault in it."""

    def __init__(self, tree: SyntaxTree, text: str, stop: int) -> None:
        self.text = text
        self.stop = stop
        self.words, self.position = _read_before(tree, stop)
        self.machine = Machine("start")
        for word in self.words:
            self.machine.feed(word.type, word)

    def read(self) -> bool:
        """Read on through the word that reaches over the offset, and return whether a word could stand there."""
        while True:
            before = self.position
            self.position = ignored()(self.text, before).end()  # type: ignore[union-attr]
            if self.position >= len(self.text) or self.position > self.stop:
                return "#" not in self.text[before : self.position].rpartition("\n")[2]
            if not self._word() and not self._resume():
                return False
            if self.words and self.words[-1].end > self.stop:
                return True

    def _word(self) -> bool:
        match = matcher(self.machine.states[-1])(self.text, self.position)
        if match is None or match.lastgroup is None:
            return False
        word = Word(match[0], match.lastgroup, self.position)
        if not (word.type == "_END" and self._goes_on(word)):
            if not self.machine.feed(word.type, word):
                return False
            self.words.append(word)
        self.position = word.end
        return True

    def _goes_on(self, line_end: Word) -> bool:
        """Return whether the statement goes on behind this end of a line: in brackets, and behind a comma."""
        comma = bool(self.words) and self.words[-1].type == "_COMMA"
        return ";" not in line_end and (comma or bool(unclosed(self.words)))

    def _resume(self) -> bool:
        """Go on at the next clause, and return whether there is one."""
        marks = _RESUME.finditer(self.text, self.position)
        clause = next((mark for mark in marks if mark["clause"]), None)
        if clause is None:
            return False
        while "RANK" not in self.machine.accepted():
            if not self.machine.drop():
                return False
        del self.words[min(unclosed(self.words), default=len(self.words)) :]
        self.position = clause.start()
        return True


def _read_before(tree: SyntaxTree, stop: int) -> tuple[list[Word], int]:
    """Return the tokens of the statement at an offset that end before it, up to an error, and where they end."""
    words: list[Word] = []
    position = 0
    inside = broken = False
    for token in tree.tokens:
        if token.start >= stop:
            break
        ends = token.type == "_END" and not inside
        if ends or token.type in STATEMENT_TERMINALS:
            words, inside, broken = [], False, False
        if not ends and token.end > stop:
            break
        broken |= token.type == "ERROR"
        inside = _inside(token, inside)
        if not broken:
            position = min(token.end, stop)
        if not broken and not ends:
            words.append(token)
    return words, position


def _inside(token: Word, inside: bool) -> bool:
    """Return whether what follows a token stands in a block."""
    return token.type == "LBRACE" or (inside and token.type != "RBRACE")
