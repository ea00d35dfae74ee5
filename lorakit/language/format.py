"""The formatter: one canonical form for every spec, with comments kept in place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from lorakit.errors import SpecError
from lorakit.language.files import decoded
from lorakit.language.layout import INDENT, Comment, lay_out, pieces
from lorakit.language.parser import parse_syntax
from lorakit.language.render import render_text
from lorakit.language.source import SourceText
from lorakit.language.syntax import CLOSING, OPENING, SyntaxTree, Word
from lorakit.language.words import CLAUSE_TERMINALS, STATEMENT_TERMINALS

_GAP = re.compile(r"#[^\n]*|\n")


def format_text(text: str, name: str = "<text>") -> str:
    """Return a spec in its canonical form. Raises: SpecError where it cannot be read."""
    return format_tree(parse_syntax(SourceText(name, decoded(text, name))))


def format_tree(tree: SyntaxTree) -> str:
    """Return the canonical form of a syntax tree. Raises: SpecError where something in it could not be read."""
    if tree.diagnostics:
        raise SpecError(tree.diagnostics, render_text(tree.diagnostics, {tree.source.name: tree.source.text}))
    return "".join(f"{line.rstrip()}\n" for line in _printed(_units(tree)))


@dataclass(slots=True)
class _Unit:
    """What begins a line of its own: a statement up to its block, a clause in a block, a closing brace, or nothing.

    `above` are the lines before it, empty ones included; the comments behind its last word are `trailing`.
    """

    words: list[Word] = field(default_factory=list)
    comments: list[list[Comment]] = field(default_factory=list)
    above: list[str] = field(default_factory=list)
    trailing: str = ""
    inside: bool = False


def _units(tree: SyntaxTree) -> list[_Unit]:
    """Return the units of a file; the last has no words and holds the comments at its end."""
    text, units, inside, depth, end = tree.source.text, [_Unit()], False, 0, 0
    words = [token for token in tree.tokens if token.type != "_END"]
    for word in words:
        gap = text[end : word.start]
        end = word.end
        begins = word.type in STATEMENT_TERMINALS or word.type == "RBRACE"
        begins = begins or (inside and not depth and word.type in CLAUSE_TERMINALS)
        depth += (word.type in OPENING) - (word.type in CLOSING)
        if begins:
            units.append(_Unit(inside=inside and word.type != "RBRACE"))
            _part(gap, units[-2], units[-1])
        elif "#" in gap:
            units[-1].comments[-1] += (Comment(text, ends > 0) for text, ends in _comments(gap) if text)
        units[-1].words.append(word)
        units[-1].comments.append([])
        if word.type in ("LBRACE", "RBRACE"):
            inside = word.type == "LBRACE"
    units.append(_Unit())
    _part(text[end:], units[-2], units[-1])
    return units


def _comments(gap: str) -> Iterator[tuple[str, int]]:
    """Yield the comments between two words, and nothing at their end, each with how many lines end before it."""
    ends = 0
    for mark in _GAP.finditer(gap):
        if mark[0] == "\n":
            ends += 1
        else:
            yield mark[0].rstrip(), ends
            ends = 0
    yield "", ends


def _part(gap: str, before: _Unit, after: _Unit) -> None:
    """Give the comments between two units to the one before, on its line, or to the one after, above it.

    Of several empty lines in a row one stays.
    """
    ended = not before.words
    for text, ends in _comments(gap):
        if text and not ended and not ends:
            before.trailing = text
            continue
        after.above += [""] * (ends + ended > 1) + [text] * bool(text)
        ended = False


def _printed(units: Sequence[_Unit]) -> list[str]:
    """Return the lines of all units, the keywords of a block's clauses padded to one column."""
    lines: list[str] = []
    column = 0
    for index, unit in enumerate(units):
        before = units[index - 1].words if index else []
        opened = not before or before[-1].type == "LBRACE"
        closes = bool(unit.words) and unit.words[0].type == "RBRACE"
        if before and opened and closes and not unit.above and not units[index - 1].trailing:
            lines[-1] += "}"
        else:
            if opened and not closes:
                column = _column(units[index:])
            lines += _above(unit, opened, closes)
            lines += _lines(unit, column)
        if unit.trailing:
            lines[-1] += f"  {unit.trailing}"
    return lines


def _column(units: Sequence[_Unit]) -> int:
    """Return the width of the longest keyword with an argument in the block that begins here."""
    block = takewhile(lambda unit: unit.inside, units)
    return max((len(unit.words[0]) for unit in block if len(unit.words) > 1), default=0)


def _above(unit: _Unit, opened: bool, closes: bool) -> Iterator[str]:
    """Yield the lines above a unit; none is empty at the top or the bottom of a block or a file."""
    lines = unit.above
    lines = lines[1:] if opened and lines[:1] == [""] else lines
    lines = lines[:-1] if (closes or not unit.words) and lines[-1:] == [""] else lines
    indent = " " * INDENT if unit.inside or closes else ""
    return (line and indent + line for line in lines)


def _lines(unit: _Unit, column: int) -> list[str]:
    parts = pieces(unit.words, unit.comments)
    if unit.inside and len(parts) > 1:
        parts[0].text = parts[0].text.ljust(column + 1)
    return lay_out(parts, INDENT if unit.inside else 0) if parts else []
