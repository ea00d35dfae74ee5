"""Inlay hints: how many modules of the model each target matches, behind the target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lorakit.language.place import Place
from lorakit.language.syntax import RuleNode, StatementNode, TargetList, Word
from lorakit.language.targets import read_targets
from lorakit.lsp.document import Document
from lorakit.lsp.model import Model
from lorakit.lsp.names import names_of, scope_of
from lorakit.lsp.prose import modules, target_text


@dataclass(frozen=True)
class Inlay:
    """What to show behind an offset, and more of it as Markdown."""

    offset: int
    label: str
    text: str


def inlays(document: Document, model: Model, start: int, end: int) -> Iterator[Inlay]:
    """Yield the hints between two offsets."""
    scope = scope_of(names_of(document), document.plugins)
    for statement in document.tree.statements:
        if statement.end < start or statement.start > end:
            continue
        for word in _targets(statement):
            targets = read_targets((word,), scope, Place(document.source))
            if targets is not None:
                paths = {path for target in targets for path in model.matches(target)}
                yield Inlay(word.end, modules(len(paths)), target_text(targets, model, document.plugins))


def _targets(statement: StatementNode) -> Iterator[Word]:
    if isinstance(statement, RuleNode):
        yield from statement.targets
        for clause in statement.clauses:
            if clause.keyword == "except":
                yield from clause.argument
    elif isinstance(value := getattr(statement, "value", None), TargetList):
        yield from value.targets
