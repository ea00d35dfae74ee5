"""The machine that runs the grammar's tables: a stack of states, and beside it what was made so far."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from operator import itemgetter
from typing import Any

from lorakit.language.compiled import TABLES
from lorakit.language.syntax import NODES, SEQUENCES, Word
from lorakit.language.tables import Reduction

Match = Callable[[str, int], "re.Match[str] | None"]


class Machine:
    """An LALR parser between two words."""

    def __init__(self, start: str) -> None:
        self.actions, self.gotos, self.makers = TABLES.actions, TABLES.gotos, _makers()
        self.states = [TABLES.starts[start]]
        self.values: list[Any] = []
        self.end = TABLES.ends[start]

    def feed(self, kind: str, value: Word) -> bool:
        """Take a word and return whether the grammar allows it here; `$END` leaves the result as the one value."""
        states, values = self.states, self.values
        actions, gotos, makers = self.actions, self.gotos, self.makers
        while True:
            action = actions[states[-1]].get(kind)
            if action is None:
                return False
            if action >= 0:
                states.append(action)
                values.append(value)
                return True
            origin, size, make = makers[~action]
            start = len(values) - size
            values[start:] = [make(values[start:])]
            del states[start + 1 :]
            states.append(gotos[states[-1]][origin])
            if states[-1] == self.end:
                return True

    def drop(self) -> bool:
        """Give up the last state, and return whether there was one to give up."""
        if not self.values:
            return False
        self.states.pop()
        self.values.pop()
        return True

    def drop_to(self, height: int) -> None:
        """Give up the states above this height of the stack."""
        del self.states[height:], self.values[height - 1 :]

    def accepted(self) -> set[str]:
        """Return the terminals that the grammar allows here; an action alone says less, since LALR merges states."""
        return {kind for kind in self.actions[self.states[-1]] if self._accepts(kind)}

    def _accepts(self, kind: str) -> bool:
        states = self.states.copy()
        while (action := self.actions[states[-1]].get(kind)) is not None:
            if action >= 0:
                return True
            origin, size, _ = self.makers[~action]
            del states[len(states) - size :]
            states.append(self.gotos[states[-1]][origin])
            if states[-1] == self.end:
                return True
        return False


@functools.cache
def matcher(state: int) -> Match:
    """Return what matches a terminal that is possible in a state, each in a group of its name.

    The end of a statement is read everywhere: whether it says anything depends on the brackets around it.
    """
    possible = TABLES.actions[state].keys() | {"_END"}
    groups = (f"(?P<{name}>{regex})" for name, regex in TABLES.terminals.items() if name in possible)
    # many states allow the same, and `re` keeps what it compiled
    return re.compile("|".join(groups)).match


@functools.cache
def terminal(name: str) -> re.Pattern[str]:
    """Return the regex of a terminal."""
    return re.compile(TABLES.terminals[name])


@functools.cache
def ignored() -> Match:
    """Return what matches blanks and comments."""
    return re.compile(TABLES.ignored).match


@functools.cache
def _makers() -> list[tuple[str, int, Any]]:
    """Return for each reduction the rule it ends, how many symbols it takes, and what it makes of them."""
    return [(reduction.origin, reduction.size, _maker(reduction)) for reduction in TABLES.reductions]


def _maker(reduction: Reduction) -> Callable[[list[Any]], Any]:
    name, kept, spliced = reduction.node, reduction.kept, reduction.spliced
    if not name and not reduction.origin.startswith("_"):
        return itemgetter(0)
    if not name:
        return lambda children: _gathered(children, kept, spliced)
    if name in SEQUENCES:
        return lambda children: tuple(_gathered(children, kept, spliced))
    make = NODES[name]
    return lambda children: make(children[0].start, _end(children[-1]), *_gathered(children, kept, spliced))


def _end(child: Any) -> int:
    """Return the offset at which a child ends: that of its last one where it is a sequence."""
    while not hasattr(child, "end"):
        child = child[-1]
    return int(child.end)


def _gathered(children: list[Any], kept: list[int], spliced: list[int]) -> list[Any]:
    """Return the children that a node keeps, those of a repetition among them."""
    result: list[Any] = []
    for place in kept:
        if place not in spliced:
            result.append(children[place])
        elif result:
            result.extend(children[place])
        else:
            # a repetition of thousands grows by one each time: copying it would take quadratic time
            result = children[place]
    return result
