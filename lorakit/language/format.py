"""The formatter: one canonical form for every spec, with comments kept in place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from lorakit.errors import SpecError
from lorakit.language.files import decoded
from lorakit.language.layout import CLOSING, INDENT, OPENING, Comment, Piece, lay_out, pieces
from lorakit.language.parser import parse_syntax
from lorakit.language.render import render_text
from lorakit.language.source import SourceText
from lorakit.language.syntax import SyntaxTree, Word
from lorakit.language.words import CLAUSE_TERMINALS, STATEMENT_TERMINALS

_GAP = re.compile(r"#[^\n]*|\n")


def format_text(text: str, name: str = "<text>") -> str:
    """Return a spec in its canonical form. Raises: SpecError where it cannot be read."""
    return format_tree(parse_syntax(SourceText(name, decoded(text, name))))


def format_tree(tree: SyntaxTree) -> str:
    """Return the canonical form of a syntax tree. Raises: SpecError where something in it could not be read."""
    if tree.diagnostics:
        raise SpecError(tree.diagnostics, render_text(tree.diagnostics, {tree.source.name: tree.source.text}))
    lines: list[str] = []
    for unit in _printed(_units(tree)):
        lines += unit
    return "".join(f"{line.rstrip()}\n" for line in lines)


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

    def pieces(self) -> list[Piece]:
        return pieces(self.words, self.comments)


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
            units[-1].comments[-1] += _comments(gap)
        units[-1].words.append(word)
        units[-1].comments.append([])
        if word.type in ("LBRACE", "RBRACE"):
            inside = word.type == "LBRACE"
    units.append(_Unit())
    _part(text[end:], units[-2], units[-1])
    return units


def _comments(gap: str) -> list[Comment]:
    """Return the comments between two words of one unit."""
    found, alone = [], False
    for mark in _GAP.finditer(gap):
        if mark[0] == "\n":
            alone = True
        else:
            found.append(Comment(mark[0].rstrip(), alone))
    return found


def _part(gap: str, before: _Unit, after: _Unit) -> None:
    """Give the comments between two units to the one before, on its line, or to the one after, above it.

    Of several empty lines in a row one stays.
    """
    newlines = 0 if before.words else 1
    for mark in _GAP.finditer(gap):
        if mark[0] == "\n":
            newlines += 1
            continue
        comment = mark[0].rstrip()
        if newlines == 0:
            before.trailing = comment
        else:
            if newlines > 1:
                after.above.append("")
            after.above.append(comment)
        newlines = 0
    if newlines > 1:
        after.above.append("")


def _printed(units: Sequence[_Unit]) -> list[list[str]]:
    """Return the lines of every unit, the keywords of a block's clauses padded to one column."""
    result: list[list[str]] = []
    column = 0
    for index, unit in enumerate(units):
        before = units[index - 1].words if index else []
        opened = not before or before[-1].type == "LBRACE"
        closes = bool(unit.words) and unit.words[0].type == "RBRACE"
        if opened and not closes:
            column = _column(units[index:])
        if before and opened and closes and not unit.above and not units[index - 1].trailing:
            result[-1][-1] += "}" + (f"  {unit.trailing}" if unit.trailing else "")
            continue
        result.append(_above(unit, opened, closes or not unit.words) + _lines(unit, column))
    return result


def _column(units: Sequence[_Unit]) -> int:
    """Return the width of the longest keyword with an argument in the block that begins here."""
    widths = [0]
    for unit in units:
        if not unit.inside:
            break
        if len(unit.words) > 1:
            widths.append(len(unit.words[0]))
    return max(widths)


def _above(unit: _Unit, first: bool, last: bool) -> list[str]:
    """Return the lines above a unit; none is empty at the top or the bottom of a block or a file."""
    indent = " " * INDENT if unit.inside or (unit.words and unit.words[0].type == "RBRACE") else ""
    lines = [f"{indent}{line}" if line else "" for line in unit.above]
    if first and lines and not lines[0]:
        del lines[0]
    if last and lines and not lines[-1]:
        del lines[-1]
    return lines


def _lines(unit: _Unit, column: int) -> list[str]:
    if not unit.words:
        return []
    parts = unit.pieces()
    if unit.inside and len(parts) > 1:
        parts[0].text = parts[0].text.ljust(column + 1)
    lines = lay_out(parts, INDENT if unit.inside else 0)
    if unit.trailing:
        lines[-1] += f"  {unit.trailing}"
    return lines
