"""Occurrences: where a program defines a `let` name and where it uses it, in all of its files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lorakit.language.syntax import SyntaxTree, Word
from lorakit.language.words import QUANTITIES, name_fault
from lorakit.lsp.document import Document
from lorakit.lsp.names import Name, names_of
from lorakit.lsp.reading import statements, word_at
from lorakit.lsp.slots import NewNameSlot, ValueSlot, slot_behind


class RenameError(Exception):
    """Why a name cannot be called so."""


@dataclass(frozen=True)
class Occurrence:
    """A word of a program's file that is a name: its definition or a use of it."""

    document: Document
    file: str
    start: int
    end: int
    defines: bool


def name_at(document: Document, offset: int) -> tuple[Name, Word] | None:
    """Return the name that a word at an offset stands for."""
    found = word_at(document.tree, offset)
    if found is None:
        return None
    before, word = found
    name = names_of(document).get(str(word))
    return (name, word) if name is not None and _is_name(before, word, name) else None


def occurrences(document: Document, name: Name) -> Iterator[Occurrence]:
    """Yield where a program names what it defines there, if it is the same definition."""
    known = names_of(document).get(str(name.word))
    if known is None or not _same(known, name):
        return
    for tree in document.analysis.trees:
        for words in statements(tree.tokens):
            for index, word in enumerate(words):
                if word == name.word and _is_name(words[:index], word, known):
                    defines = word.start == known.word.start and tree.source.name == known.source.name
                    yield Occurrence(document, tree.source.name, word.start, word.end, defines)


def in_programs(documents: Iterable[Document], name: Name) -> list[Occurrence]:
    """Return where several programs, which may share files, name the same; each place once."""
    found: dict[tuple[Path, int], Occurrence] = {}
    for document in documents:
        for one in occurrences(document, name):
            found.setdefault((Path(one.file).resolve(), one.start), one)
    return list(found.values())


def renamed(documents: Iterable[Document], name: Name, new: str) -> list[Occurrence]:
    """Return the words that a new name replaces. Raises: RenameError where that would change what a program means."""
    programs = [document for document in documents if any(occurrences(document, name))]
    fault = name_fault(new) or ("`rank` is the rank of a rule" if new == "rank" else "")
    fault = fault or (f"`{new}` is a quantity" if new in QUANTITIES else "")
    for document in programs:
        for tree in document.analysis.trees:
            fault = fault or _clash(tree, name, new)
        fault = fault or (f"`{new}` is defined in {document.source.name}" if new in names_of(document) else "")
    if fault:
        raise RenameError(fault)
    return in_programs(programs, name)


def _clash(tree: SyntaxTree, name: Name, new: str) -> str:
    """Return why a file stands in the way of a new name, or an empty string."""
    for token in tree.tokens:
        line = tree.source.position(token.start)[0]
        if token.type == "ERROR" and re.search(rf"\b{re.escape(name.word)}\b", token):
            return f"{tree.source.name}, line {line}, cannot be read and may use it: mend that first"
        if token.type == "TARGET" and token == new and isinstance(name.value, tuple):
            return f"{tree.source.name}, line {line}, has a target `{new}`, which would become this list"
    return ""


def _same(one: Name, other: Name) -> bool:
    return one.word.start == other.word.start and Path(one.source.name).resolve() == Path(other.source.name).resolve()


def _is_name(before: Iterable[Word], word: Word, name: Name) -> bool:
    if word.type == "TARGET":
        return isinstance(name.value, tuple)
    return word.type == "NAME" and isinstance(slot_behind(tuple(before)), ValueSlot | NewNameSlot)
