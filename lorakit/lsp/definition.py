"""Definitions: where a `let` name is defined, and which file an `include` means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lorakit.language.syntax import IncludeNode, Word
from lorakit.lsp.document import Document
from lorakit.lsp.includes import included
from lorakit.lsp.names import names_of
from lorakit.lsp.reading import word_at


@dataclass(frozen=True)
class Definition:
    """A piece of a file, by the name that diagnostics give the file."""

    file: str
    start: int
    end: int


def definition(document: Document, offset: int) -> Definition | None:
    """Return what defines the word at an offset."""
    found = word_at(document.tree, offset)
    find = _FINDERS.get(found[1].type) if found is not None else None
    return find(document, found[1]) if find is not None and found is not None else None


def _name(document: Document, word: Word) -> Definition | None:
    name = names_of(document).get(str(word))
    return Definition(name.source.name, name.word.start, name.word.end) if name is not None else None


def _list(document: Document, word: Word) -> Definition | None:
    name = names_of(document).get(str(word))
    return _name(document, word) if name is not None and isinstance(name.value, tuple) else None


def _file(document: Document, word: Word) -> Definition | None:
    for node in document.tree.statements:
        if isinstance(node, IncludeNode) and node.path.start == word.start:
            path = included(node, document.folder)
            return Definition(str(path), 0, 0) if path.is_file() else None
    return None


_FINDERS: Mapping[str, Callable[[Document, Word], Definition | None]] = {
    "NAME": _name,
    "TARGET": _list,
    "STRING": _file,
}
