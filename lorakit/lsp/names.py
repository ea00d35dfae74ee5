"""Names: what the `let` statements of a program define, with the files that it includes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorakit.hooks import Plugins
from lorakit.language.amounts import Amount, LimitError
from lorakit.language.names import Definition, LetValue, Scope
from lorakit.language.place import Place
from lorakit.language.program import let_value
from lorakit.language.source import SourceText
from lorakit.language.syntax import LetNode, Word
from lorakit.lsp.document import Document
from lorakit.lsp.includes import statements_of


@dataclass(frozen=True)
class Name:
    """A `let` name: the word that defines it, in which text, and what it is worth (None where that is at fault)."""

    word: Word
    source: SourceText
    value: LetValue

    @property
    def shown(self) -> str:
        """What it is worth, in the syntax of the language."""
        return _shown(self.value)


def names_of(document: Document, above: int | None = None) -> dict[str, Name]:
    """Return the names that a program defines, or those that it defines above an offset of the document."""
    names: dict[str, Name] = {}
    scope = scope_of({}, document.plugins)
    for tree, statement in statements_of(document, above):
        if isinstance(statement, LetNode) and statement.name not in names:
            place = Place(tree.source)
            value = let_value(statement.value, scope, place)
            names[str(statement.name)] = Name(statement.name, tree.source, value)
            scope.definitions[str(statement.name)] = Definition(value, place.span(statement.name))
    return names


def scope_of(names: Mapping[str, Name], plugins: Plugins) -> Scope:
    """Return a scope that knows these names and keeps quiet about all others."""
    spans = {name: found.source.span(found.word.start, found.word.end) for name, found in names.items()}
    return Scope(plugins, {name: Definition(found.value, spans[name]) for name, found in names.items()}, complete=False)


def _shown(value: LetValue) -> str:
    if isinstance(value, Amount):
        try:
            return f"{value.written}{value.unit}"
        except LimitError as error:
            return str(error)
    if isinstance(value, str):
        return f'"{value}"'
    return f"[{', '.join(map(str, value))}]" if value is not None else "nothing: its value is at fault"
