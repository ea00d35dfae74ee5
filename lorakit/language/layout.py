"""Layout: the words of one statement or clause on as few lines as they fit on, comments in their places."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from lorakit.language.syntax import CLOSING, OPENING, Word

WIDTH = 100
INDENT = 2

_TIGHT = ("PLUS", "MINUS", "TIMES", "OVER", "_DOTS")
_VALUES = ("NUMBER", "NAME", "_RPAR")


@dataclass(frozen=True, slots=True)
class Comment:
    """A comment with its `#`; `alone` where nothing but blanks stands before it on its line."""

    text: str
    alone: bool


@dataclass(slots=True)
class Piece:
    """A word as it will be printed, with the comments behind it."""

    type: str
    text: str
    spaced: bool
    comments: list[Comment] = field(default_factory=list)


def pieces(words: Sequence[Word], comments: Sequence[Sequence[Comment]] = ()) -> list[Piece]:
    """Return the words of a unit as pieces, each with the comments that stand behind it.

    A comment between a word and its comma moves behind the comma; a comma before a closing bracket goes.
    """
    result: list[Piece] = []
    depth = 0
    before: Piece | None = None
    for index, (word, behind) in enumerate(zip(words, comments or [()] * len(words), strict=True)):
        if word.type in CLOSING:
            depth -= 1
            if before is not None and before.type == "_COMMA":
                result.pop()
                result[-1].comments += before.comments
        piece = Piece(
            word.type,
            re.sub(r"\s+", "", word) if word.type == "TARGET" else str(word),
            _spaced(words, index, depth),
            [*behind],
        )
        if word.type == "_COMMA" and before is not None:
            piece.comments[:0] = before.comments
            before.comments = []
        if word.type in OPENING:
            depth += 1
        result.append(piece)
        before = piece
    return result


def flat(parts: Sequence[Piece]) -> str:
    """Return pieces on one line, without their comments."""
    return "".join(f" {part.text}" if part.spaced else part.text for part in parts).lstrip(" ")


def lay_out(parts: Sequence[Piece], indent: int) -> list[str]:
    """Return the lines of a unit: one, where it fits and holds no comment, or several broken at brackets and commas."""
    text = flat(parts)
    if indent + len(text) <= WIDTH and not any(part.comments for part in parts[:-1]):
        return [" " * indent + text]
    page = _Page(indent)
    page.put(parts, indent + 2 * INDENT)
    return [*page.lines, page.line]


class _Page:
    """Lines in the making."""

    def __init__(self, indent: int) -> None:
        self.lines: list[str] = []
        self.line = " " * indent

    def put(self, parts: Sequence[Piece], indent: int, one_a_line: bool = False) -> None:
        """Print pieces: commas break the line where the next words would not fit, or always."""
        index = 0
        while index < len(parts):
            end = _closing(parts, index)
            if end > index and not self._fits(parts[index : end + 1]):
                self._group(parts[index : end + 1])
            else:
                for part in parts[index : end + 1]:
                    self._word(part)
            index, last = end + 1, parts[end]
            if one_a_line or index < len(parts):
                self._comments(last.comments, indent)
            if last.type == "_COMMA" and (one_a_line or not self._fits(parts[index : _next_comma(parts, index)])):
                self._newline(indent)

    def _group(self, parts: Sequence[Piece]) -> None:
        """Print a bracket with one item on each line."""
        outer = len(self.line) - len(self.line.lstrip(" "))
        inner = outer + INDENT
        self._word(parts[0])
        self._comments(parts[0].comments, inner)
        self._newline(inner)
        self.put(parts[1:-1], inner, one_a_line=True)
        self._newline(outer)
        self._word(parts[-1])

    def _fits(self, parts: Sequence[Piece]) -> bool:
        return len(self.line) + len(flat(parts)) < WIDTH and not any(part.comments for part in parts[:-1])

    def _word(self, part: Piece) -> None:
        self.line += f" {part.text}" if part.spaced and self.line.strip() else part.text

    def _comments(self, comments: Sequence[Comment], indent: int) -> None:
        for number, comment in enumerate(comments):
            if number or comment.alone:
                self._newline(indent)
                self.line += comment.text
            else:
                self.line += f"  {comment.text}"
        if comments:
            self._newline(indent)

    def _newline(self, indent: int) -> None:
        if self.line.strip():
            self.lines.append(self.line)
        self.line = " " * indent


def _spaced(words: Sequence[Word], index: int, depth: int) -> bool:
    """Return whether a blank stands before a word on one line."""
    if index == 0:
        return False
    before, word = words[index - 1].type, words[index].type
    if before in OPENING or word in CLOSING or word in ("_COMMA", "_LPAR"):
        return False
    if before == "_COMMA":
        return depth > 0
    if "_EQUAL" in (before, word):
        return depth == 0
    if before in _TIGHT:
        return False
    return word not in _TIGHT or before not in (*_VALUES, "INTEGER")


def _closing(parts: Sequence[Piece], start: int) -> int:
    """Return where a bracket that opens here closes; where none opens, this is the place itself."""
    depth = 0
    for index in range(start, len(parts)):
        depth += (parts[index].type in OPENING) - (parts[index].type in CLOSING)
        if depth == 0:
            return index
    raise AssertionError("brackets are balanced in what was parsed")


def _next_comma(parts: Sequence[Piece], start: int) -> int:
    return next((index for index in range(start, len(parts)) if parts[index].type == "_COMMA"), len(parts))
