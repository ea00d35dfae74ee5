"""Statements to Spec: the checks that need no model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorakit.diagnostics import Code, Span
from lorakit.language.calls import Calls, unquoted
from lorakit.language.clauses import Context, rank_clause, read_clauses, read_rank
from lorakit.language.distributions import is_installed
from lorakit.language.names import Definition, LetValue, Rank, Scope, evaluate
from lorakit.language.problems import Place
from lorakit.language.requires import Requires
from lorakit.language.settings import Settings
from lorakit.language.spec import Spec
from lorakit.language.statements import (
    Adapt,
    Optimizer,
    Quantize,
    Require,
    Rule,
    Step,
    Train,
)
from lorakit.language.syntax import (
    BrokenNode,
    Call,
    LetNode,
    RequireNode,
    RuleNode,
    StatementNode,
    TargetList,
    UseNode,
    Word,
)
from lorakit.language.targets import read_targets
from lorakit.language.words import OPTIMIZER, QUANTIZER

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
    scope = _scope(program, complete)
    installed = [is_installed(node, place, plugins) for place, node in program if isinstance(node, UseNode)]
    scope.lacks_plugins = not all(installed)
    scope.absence = plugins.absence
    reader = _Reader(Calls(plugins, scope), scope, settings, Requires(scope, quantities))
    for place, statement in program:
        for name, words in _lost_names(statement):
            scope.definitions.setdefault(name, Definition(None, place.word_span(words)))
        _READERS[type(statement)](reader, statement, place)
    settings.report_unknown(scope)
    return Spec(
        tuple(reader.rules), reader.optimizer, reader.steps, tuple(reader.requires), tuple(reader.uses)
    )  # fmt: skip


def _scope(program: Sequence[tuple[Place, StatementNode]], complete: bool) -> Scope:
    """Return the scope before the first statement, which knows what will be defined."""
    later: dict[str, Span] = {}
    lists: set[str] = set()
    for place, statement in program:
        if isinstance(statement, LetNode):
            later.setdefault(statement.name.value, place.word_span(statement.name))
            if isinstance(statement.value, TargetList):
                lists.add(statement.name.value)
        for name, words in _lost_names(statement):
            later.setdefault(name, place.word_span(words))
    return Scope({}, later, lists, complete)


@dataclass
class _Reader:
    """Reads one statement after the other."""

    calls: Calls
    scope: Scope
    settings: Settings
    promises: Requires
    rules: list[Rule] = field(default_factory=list)
    optimizer: Optimizer | None = None
    steps: Step | None = None
    once: dict[Code, Span] = field(default_factory=dict)
    requires: list[Require] = field(default_factory=list)
    uses: list[tuple[str, str | None]] = field(default_factory=list)

    def rule(self, node: RuleNode, place: Place) -> None:
        _RULE_READERS[node.keyword.value](self, node, place)

    def adapt(self, node: RuleNode, place: Place) -> None:
        targets = read_targets(node.targets, self.scope, self.calls.plugins.roles, place)
        method = self._method(node)
        ranked = method is None or "rank" in method.clauses
        clause = rank_clause(node)
        rank: Rank = "unknown" if node.unread or clause is not None else None
        if clause is not None and ranked:
            rank = read_rank(clause, Context(self.calls, place)) or "unknown"
        fields = read_clauses(node, Context(self.calls, place, rank, method))
        if method is not None and ranked and clause is None and not node.unread:
            message = f"this rule has no rank, and `{method.name}` needs one"
            place.report_word(Code.RANK_MISSING, message, node.keyword, None, "help: add a clause such as `rank 16`")
        if targets is not None:
            argument: Any = clause.argument if clause is not None else None
            rank_span = place.span(argument.start, argument.end) if argument is not None else None
            self.rules.append(Adapt(targets, **fields, span=place.span(node.start, node.end), rank_span=rank_span))

    def _method(self, node: RuleNode) -> Any:
        """Return the method of a rule, or None where no plugin has its name: then nobody can tell what it takes."""
        given = next((clause.argument for clause in node.clauses if clause.keyword.type == "METHOD"), None)
        default: Any = Adapt.__dataclass_fields__["method"].default
        return self.calls.plugins.methods.get(given.name.value if isinstance(given, Call) else default.name)

    def quantize(self, node: RuleNode, place: Place) -> None:
        targets = read_targets(node.targets, self.scope, self.calls.plugins.roles, place)
        assert node.call is not None
        leaves = self.calls.is_none(node.call, place)
        call = None if leaves else self.calls.read(node.call, QUANTIZER, place)
        fields = read_clauses(node, Context(self.calls, place))
        if targets is not None and (leaves or call is not None):
            self.rules.append(Quantize(targets, call, **fields, span=place.span(node.start, node.end)))

    def train(self, node: RuleNode, place: Place) -> None:
        targets = read_targets(node.targets, self.scope, self.calls.plugins.roles, place)
        fields = read_clauses(node, Context(self.calls, place))
        if targets is not None:
            self.rules.append(Train(targets, **fields, span=place.span(node.start, node.end)))

    def optimize(self, node: RuleNode, place: Place) -> None:
        assert node.call is not None
        call = self.calls.read(node.call, OPTIMIZER, place)
        fields = read_clauses(node, Context(self.calls, place))
        span = self._first(node, place, Code.TWO_OPTIMIZERS)
        if span is not None and call is not None:
            self.optimizer = Optimizer(call, **fields, span=span)

    def step(self, node: RuleNode, place: Place) -> None:
        fields = read_clauses(node, Context(self.calls, place))
        span = self._first(node, place, Code.TWO_STEPS)
        if span is not None:
            self.steps = Step(**fields, span=span)

    def _first(self, node: RuleNode, place: Place, code: Code) -> Span | None:
        """Return the span of a statement that a program has once, or None where this is not the first of its kind."""
        if code in self.once:
            message = f"a program has one {node.keyword} at most"
            place.report_word(code, message, node.keyword, None, f"the first one is at {self.once[code]}")
            return None
        self.once[code] = place.span(node.start, node.end)
        return self.once[code]

    def let(self, node: LetNode, place: Place) -> None:
        name, span = node.name.value, place.word_span(node.name)
        value = self._value(node.value, place)
        if name == "rank":
            message = "`rank` is no name for a `let`: inside a rule it is that rule's rank"
            place.report_word(Code.RESERVED_NAME, message, node.name)
            return
        if name in self.scope.definitions:
            first = self.scope.definitions[name].span
            message = f"`{name}` is defined twice"
            place.report_word(Code.DEFINED_TWICE, message, node.name, None, f"it is first defined at {first}")
            return
        if name in self.settings:
            value = self.settings.read(name, self._value)
        self.scope.definitions[name] = Definition(value, span)

    def _value(self, node: Any, place: Place) -> LetValue:
        if isinstance(node, Word) and node.type == "STRING":
            return unquoted(node)
        if isinstance(node, TargetList):
            return read_targets(node.targets, self.scope, self.calls.plugins.roles, place)
        return evaluate(node, self.scope, place)

    def require(self, node: RequireNode, place: Place) -> None:
        promise = self.promises.read(node, place)
        if promise is not None:
            self.requires.append(promise)

    def use(self, node: UseNode, place: Place) -> None:
        self.uses.append((node.distribution.value, node.version.value if node.version is not None else None))

    def broken(self, node: BrokenNode, place: Place) -> None:
        """Leave out what cannot be read; that has been reported."""


def _lost_names(node: StatementNode) -> Iterator[tuple[str, Word]]:
    """Yield the names that a statement would define if it could be read, and the words that hold them."""
    for words in node.unread if isinstance(node, RuleNode | BrokenNode) else ():
        match = _BROKEN_LET.match(words)
        if match is not None:
            yield match[1], words


_READERS: Mapping[type, Callable[[_Reader, Any, Place], None]] = {
    RuleNode: _Reader.rule,
    LetNode: _Reader.let,
    RequireNode: _Reader.require,
    UseNode: _Reader.use,
    BrokenNode: _Reader.broken,
}

_RULE_READERS: Mapping[str, Callable[[_Reader, RuleNode, Place], None]] = {
    "adapt": _Reader.adapt,
    "quantize": _Reader.quantize,
    "train": _Reader.train,
    "optimizer": _Reader.optimize,
    "step": _Reader.step,
}
