"""Statements to Spec: the checks that need no model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorakit.diagnostics import Code, Span
from lorakit.language.calls import check_bare, read_call, unquoted
from lorakit.language.clauses import read_clauses
from lorakit.language.distributions import is_installed
from lorakit.language.names import Definition, LetValue, Scope, evaluate
from lorakit.language.place import Place
from lorakit.language.requires import read_require
from lorakit.language.settings import Settings
from lorakit.language.spec import Spec
from lorakit.language.statements import Adapt, Optimizer, Quantize, Require, Rule, Step, Train
from lorakit.language.syntax import BrokenNode, LetNode, RequireNode, RuleNode, StatementNode, TargetList, UseNode, Word
from lorakit.language.targets import read_targets
from lorakit.language.words import STATEMENTS

if TYPE_CHECKING:
    from lorakit.hooks import Plugins

_BROKEN_LET = re.compile(r"\s*let\s+(\w+)")


def build(
    program: Sequence[tuple[Place, StatementNode]],
    settings: Settings,
    plugins: Plugins,
    quantities: Mapping[str, str],
    complete: bool,
) -> Spec:
    """Return the Spec of these statements; what is at fault is reported to its place and left out.

    `complete` says whether every file of the program could be read.
    """
    scope = Scope(plugins, complete=complete)
    for place, statement in program:
        if isinstance(statement, LetNode):
            scope.later.setdefault(str(statement.name), place.span(statement.name))
            if isinstance(statement.value, TargetList):
                scope.later_lists.add(str(statement.name))
        for name, words in _lost_names(statement):
            scope.later.setdefault(name, place.span(words))
    installed = [is_installed(node, place, plugins) for place, node in program if isinstance(node, UseNode)]
    scope.lacks_plugins = not all(installed)
    reader = _Reader(scope, settings, quantities)
    for place, statement in program:
        for name, words in _lost_names(statement):
            scope.definitions.setdefault(name, Definition(None, place.span(words)))
        _READERS[type(statement)](reader, statement, place)
    settings.report_unknown(scope)
    _report_unused(program, scope)
    return Spec(tuple(reader.rules), requires=tuple(reader.requires), uses=tuple(reader.uses), **reader.once)


def _report_unused(program: Sequence[tuple[Place, StatementNode]], scope: Scope) -> None:
    """Warn of names that the program's own file defines and nothing uses, unless it is there for others to include.

    What an included file defines may be for another program. Where something is at fault, a use may be lost in it.
    """
    place = next((place for place, _ in program if not place.chain), None)
    if place is None or place.problems or all(isinstance(node, LetNode) for _, node in program):
        return
    for where, node in program:
        if isinstance(node, LetNode) and not where.chain and node.name not in scope.used and node.name[0] != "_":
            note = f"help: remove the line, or call it `_{node.name}` to keep it"
            place.report(Code.UNUSED_NAME, f"nothing uses `{node.name}`", node.name, None, note)


def let_value(node: Any, scope: Scope, place: Place) -> LetValue:
    """Return what stands behind `let NAME =`, or None where its fault has been reported."""
    if isinstance(node, Word) and node.type == "STRING":
        return unquoted(node)
    if isinstance(node, TargetList):
        return read_targets(node.targets, scope, place)
    return evaluate(node, scope, place)


@dataclass
class _Reader:
    """Reads one statement after the other; `once` are those that a program has once."""

    scope: Scope
    settings: Settings
    quantities: Mapping[str, str]
    rules: list[Rule] = field(default_factory=list)
    once: dict[str, Any] = field(default_factory=dict)
    firsts: dict[str, Span] = field(default_factory=dict)
    requires: list[Require] = field(default_factory=list)
    uses: list[tuple[str, str | None]] = field(default_factory=list)

    def rule(self, node: RuleNode, place: Place) -> None:
        keyword, kind, known = STATEMENTS[node.keyword], _KINDS[node.keyword], len(place.problems)
        method = self._method(node, place) if kind is Adapt else None
        given = read_clauses(node, self.scope, place, method)
        if node.targets:
            given["targets"] = read_targets(node.targets, self.scope, place)
        if node.call is not None and node.call.name == keyword.without:
            check_bare(node.call, place)
        elif node.call is not None:
            given[keyword.fills] = read_call(node.call, keyword.plugin, self.scope, place)
        span = place.span(node)
        sound = len(place.problems) == known and not node.unread
        statement = kind(**given, span=span) if sound and None not in given.values() else None
        if keyword.word not in _ONCE:
            self.rules += [statement] if statement is not None else []
        elif keyword.word not in self.firsts:
            self.firsts[keyword.word] = span
            self.once[keyword.word] = statement
        else:
            note = f"the first one is at {self.firsts[keyword.word]}"
            place.report(_ONCE[keyword.word], f"a program has one {keyword.word} at most", node.keyword, None, note)

    def _method(self, node: RuleNode, place: Place) -> Any:
        """Return the method of a rule, or None where no plugin has its name: then nobody can tell what it takes."""
        named = next((str(clause.argument.name) for clause in node.clauses if clause.keyword == "method"), _METHOD)
        method: Any = self.scope.plugins.methods.get(named)
        ranked = method is None or "rank" not in method.clauses or node.unread
        if not ranked and all(clause.keyword != "rank" for clause in node.clauses):
            message = f"this rule has no rank, and `{method.name}` needs one"
            place.report(Code.RANK_MISSING, message, node.keyword, None, "help: add a clause such as `rank 16`")
        return method

    def let(self, node: LetNode, place: Place) -> None:
        name = str(node.name)
        value = let_value(node.value, self.scope, place)
        if name == "rank":
            message = "`rank` is no name for a `let`: inside a rule it is that rule's rank"
            place.report(Code.RESERVED_NAME, message, node.name)
        elif name in self.scope.definitions:
            note = f"it is first defined at {self.scope.definitions[name].span}"
            place.report(Code.DEFINED_TWICE, f"`{name}` is defined twice", node.name, None, note)
        else:
            if name in self.settings.values:
                value = self.settings.read(name, lambda given, inside: let_value(given, self.scope, inside))
            self.scope.definitions[name] = Definition(value, place.span(node.name))

    def require(self, node: RequireNode, place: Place) -> None:
        promise = read_require(node, self.scope, self.quantities, place)
        self.requires += [promise] if promise is not None else []

    def use(self, node: UseNode, place: Place) -> None:
        self.uses.append((str(node.distribution), str(node.version) if node.version is not None else None))

    def broken(self, node: BrokenNode, place: Place) -> None:
        """Leave out what cannot be read; that has been reported."""


def _lost_names(node: StatementNode) -> list[tuple[str, Word]]:
    """Return the names that a statement would define if it could be read, and the words that hold them."""
    unread = node.unread if isinstance(node, RuleNode | BrokenNode) else ()
    return [(match[1], words) for words in unread if (match := _BROKEN_LET.match(words)) is not None]


_READERS: Mapping[type, Callable[[_Reader, Any, Place], None]] = {
    RuleNode: _Reader.rule,
    LetNode: _Reader.let,
    RequireNode: _Reader.require,
    UseNode: _Reader.use,
    BrokenNode: _Reader.broken,
}

_KINDS: Mapping[str, Any] = {kind.__name__.lower(): kind for kind in (Adapt, Quantize, Train, Optimizer, Step)}
_ONCE = {"optimizer": Code.TWO_OPTIMIZERS, "step": Code.TWO_STEPS}
_METHOD = Adapt.__dataclass_fields__["method"].default.name
