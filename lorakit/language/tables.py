"""An LALR parser with a contextual lexer, as plain data: what `compiled` holds of the grammar."""

from __future__ import annotations

from typing import NamedTuple


class Reduction(NamedTuple):
    """A rule of the grammar: what it makes, of how many symbols, and what becomes of them.

    `node` is the name of what it makes, empty where it is its one symbol or, called `_…`, where its children go to the
    rule around it. Of its symbols those at `kept` are children; `spliced` are the ones among them that bring several.
    """

    origin: str
    node: str
    size: int
    kept: list[int]
    spliced: list[int]


class Tables(NamedTuple):
    """An LALR parser with a contextual lexer, as plain data.

    `actions` are by state and terminal: the state to shift to, or the number of a reduction, inverted (`~number`).
    `gotos` are by state and rule. `terminals` are regexes by name, those first that are tried first; `ignored` is the
    regex of what says nothing.
    """

    starts: dict[str, int]
    ends: dict[str, int]
    actions: list[dict[str, int]]
    gotos: list[dict[str, int]]
    reductions: list[Reduction]
    terminals: dict[str, str]
    ignored: str
