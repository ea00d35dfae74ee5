"""The grammar made into tables by Lark: `python -m lorakit.language.compiling` writes them to `compiled.py`.

Compiling takes longer than reading most specs, and so does importing Lark; with the tables at hand neither is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorakit.language.tables import Reduction, Tables

STARTS = ("start", "value")


def grammar_text() -> str:
    """Return the grammar of the language, as it is installed or, in a source checkout, beside the package."""
    try:
        import lorakit.grammar as installed

        return Path(installed.__path__[0], "lorakit.lark").read_text("utf-8")
    except (ModuleNotFoundError, FileNotFoundError):
        return (Path(__file__).parents[2] / "grammar" / "lorakit.lark").read_text("utf-8")


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
    origin = str(rule.origin.name)
    kept = [place for place, symbol in enumerate(rule.expansion) if not (symbol.is_term and symbol.filter_out)]
    spliced = [place for place in kept if not rule.expansion[place].is_term and rule.expansion[place].name[0] == "_"]
    transparent = bool(rule.options.expand1) and not rule.alias and len(kept) == len(rule.expansion) == 1
    node = "" if origin.startswith("_") or transparent else str(rule.alias or origin)
    return Reduction(origin, node, len(rule.expansion), kept, spliced)


def module_text(made: Tables) -> str:
    """Return the module that holds tables, a state, a reduction or a terminal a line."""
    fields = (f"    {name}={_lines(value)},\n" for name, value in made._asdict().items())
    return f"{_HEAD}TABLES = Tables(\n{''.join(fields)})\n"


_HEAD = '''"""The tables of the grammar. `python -m lorakit.language.compiling` makes them."""

from lorakit.language.tables import Reduction, Tables

# ruff: noqa: E501
# fmt: off
'''


def _lines(value: Any) -> str:
    """Return a value as Python writes it, each item of a list or a dict on a line of its own."""
    if isinstance(value, list):
        return "[\n" + "".join(f"        {item!r},\n" for item in value) + "    ]"
    if isinstance(value, dict):
        return "{\n" + "".join(f"        {name!r}: {item!r},\n" for name, item in value.items()) + "    }"
    return repr(value)


if __name__ == "__main__":
    Path(__file__).with_name("compiled.py").write_text(module_text(compile_tables(grammar_text())), "utf-8")
