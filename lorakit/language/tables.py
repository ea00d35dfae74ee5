"""The grammar as tables: Lark compiles it once, and the user's cache keeps what came out.

Compiling takes longer than reading most specs, and so does importing Lark; with the tables at hand neither is needed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from lorakit.caching import cache_folder

STARTS = ("start", "value")

# Counts the forms that cached tables have had
_FORM = 5


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


def grammar_text() -> str:
    """Return the grammar of the language, as it is installed or, in a source checkout, beside the package."""
    try:
        import lorakit.grammar as installed

        return Path(installed.__path__[0], "lorakit.lark").read_text("utf-8")
    except (ModuleNotFoundError, FileNotFoundError):
        return (Path(__file__).parents[2] / "grammar" / "lorakit.lark").read_text("utf-8")


@functools.cache
def tables() -> Tables:
    """Return the tables of the language: the cached ones of this grammar, or new ones, which are then cached."""
    grammar = grammar_text()
    origin = f"{_FORM}\n{grammar}"
    # a checksum keeps those of several versions apart; whose they are they say themselves
    cache = cache_folder() / f"grammar-{zlib.crc32(origin.encode()):08x}.json"
    try:
        kept = json.loads(cache.read_bytes())
        made = Tables(*kept["tables"])
        if kept["origin"] == origin:
            return made._replace(reductions=[Reduction(*reduction) for reduction in made.reductions])
    except (OSError, ValueError, TypeError, LookupError):
        pass
    made = compile_tables(grammar)
    _keep(made, origin, cache)
    return made


@functools.cache
def terminal(name: str) -> re.Pattern[str]:
    """Return the regex of a terminal."""
    return re.compile(tables().terminals[name])


def compile_tables(grammar: str) -> Tables:
    """Return the tables that Lark makes of a grammar, the same in every run."""
    from lark import Lark
    from lark.parsers.lalr_analysis import Shift

    lark = Lark(grammar, parser="lalr", lexer="contextual", start=list(STARTS), maybe_placeholders=False)
    table: Any = lark.parser.parser._parse_table
    terminals = sorted(lark.terminals, key=_precedence)
    symbols = {terminal.name for terminal in terminals} | {"$END", "ERROR"}
    states = _in_order(table, Shift)
    rules: dict[Any, int] = {}
    made = Tables({}, {}, [], [], [], {}, "")
    for state in states:
        row = dict(sorted(table.states[state].items()))
        made.actions.append(
            {
                name: states[target] if action is Shift else ~rules.setdefault(target, len(rules))
                for name, (action, target) in row.items()
                if name in symbols
            }
        )
        made.gotos.append({name: states[target] for name, (_, target) in row.items() if name not in symbols})
    ignored = sorted(terminal.pattern.to_regexp() for terminal in terminals if terminal.name in lark.ignore_tokens)
    return made._replace(
        starts={name: states[table.start_states[name]] for name in STARTS},
        ends={name: states[table.end_states[name]] for name in STARTS},
        reductions=[_reduction(rule) for rule in rules],
        terminals={terminal.name: terminal.pattern.to_regexp() for terminal in terminals},
        ignored=f"(?:{'|'.join(ignored)})*",
    )


def _in_order(table: Any, shift: object) -> dict[int, int]:
    """Return new numbers for the states of a parse table, in the order in which they are reached; Lark's own vary."""
    states = {table.start_states[name]: place for place, name in enumerate(STARTS)}
    waiting = list(states)
    for state in waiting:
        for _, (action, target) in sorted(table.states[state].items()):
            if action is shift and target not in states:
                states[target] = len(states)
                waiting.append(target)
    return states


def _precedence(terminal: Any) -> tuple[int, int, int, str]:
    """Return the key by which Lark's own lexers order terminals: priority, then length, then the longer pattern."""
    return (-terminal.priority, -terminal.pattern.max_width, -len(terminal.pattern.value), terminal.name)


def _reduction(rule: Any) -> Reduction:
    origin = rule.origin.name
    kept = [place for place, symbol in enumerate(rule.expansion) if not (symbol.is_term and symbol.filter_out)]
    spliced = [place for place in kept if not rule.expansion[place].is_term and rule.expansion[place].name[0] == "_"]
    transparent = bool(rule.options.expand1) and not rule.alias and len(kept) == len(rule.expansion) == 1
    node = "" if origin.startswith("_") or transparent else rule.alias or origin
    return Reduction(origin, node, len(rule.expansion), kept, spliced)


def _keep(made: Tables, origin: str, cache: Path) -> None:
    """Write tables to the cache in one step; where that is not possible the next run compiles again."""
    aside = cache.with_suffix(f".{os.getpid()}")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps({"origin": origin, "tables": made}))
        aside.replace(cache)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()
