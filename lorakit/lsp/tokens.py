"""Semantic tokens: what each word is, by the parser, for an editor to colour."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from lorakit.language.syntax import Word
from lorakit.language.words import KEYWORDS, QUANTITIES
from lorakit.lsp.document import Document
from lorakit.lsp.names import names_of
from lorakit.lsp.reading import statements
from lorakit.lsp.slots import ChoiceSlot, NewNameSlot, OptionSlot, PluginSlot, ValueSlot, slot_behind

TYPES = (
    "keyword", "function", "enumMember", "parameter", "variable", "property", "namespace", "decorator", "class",
    "number", "string", "regexp", "operator", "comment",
)  # fmt: skip
MODIFIERS = ("declaration", "readonly")

_BY_TERMINAL: Mapping[str, str] = {
    **dict.fromkeys((keyword.terminal for keyword in KEYWORDS.values()), "keyword"),
    **dict.fromkeys(("NUMBER", "INTEGER", "VERSION"), "number"),
    **dict.fromkeys(("PLUS", "MINUS", "TIMES", "OVER", "COMPARISON", "_EQUAL", "_AT_LEAST", "_DOTS"), "operator"),
    "STRING": "string",
    "REGEX": "regexp",
    "DISTRIBUTION": "namespace",
}
_BY_SLOT: Mapping[type, tuple[str, int]] = {
    PluginSlot: ("function", 0),
    ChoiceSlot: ("enumMember", 0),
    OptionSlot: ("parameter", 0),
    ValueSlot: ("variable", 0),
    NewNameSlot: ("variable", 1),
}
_PIECES = re.compile(r"(?P<decorator>@\w+)|(?P<class>:\w+)|(?P<number>(?<=[\[,.\s])-?\d+(?=\s*(?:\.\.|[,\]])))"
                     r"|(?P<operator>\*+|\.\.)|(?P<property>[\w-]+)")  # fmt: skip
_COMMENT = re.compile(r"#[^\n]*")

# a word's offsets, its type and the bits of its modifiers
Token = tuple[int, int, str, int]


def tokens(document: Document) -> list[Token]:
    """Return what the words and comments of a document are, in their order."""
    lists = {name for name, found in names_of(document).items() if isinstance(found.value, tuple)}
    found = [token for words in statements(document.tree.tokens) for token in _words(words, lists)]
    return sorted([*found, *_comments(document)])


def encoded(document: Document, start: int, end: int) -> list[int]:
    """Return the tokens between two offsets as the protocol packs them: each by its distance from the one before."""
    data: list[int] = []
    line = column = 0
    for first, last, kind, modifiers in tokens(document):
        if last <= start or first >= end:
            continue
        place = document.positions.range(first, last)
        at, character = place.start.line, place.start.character
        data += [
            at - line,
            character - (column if at == line else 0),
            place.end.character - character,
            TYPES.index(kind),
            modifiers,
        ]
        line, column = at, character
    return data


def _words(words: Sequence[Word], lists: set[str]) -> Iterator[Token]:
    for index, word in enumerate(words):
        if word.type == "TARGET" and word in lists:
            yield word.start, word.end, "variable", 0
        elif word.type == "TARGET":
            for piece in _PIECES.finditer(word):
                yield word.start + piece.start(), word.start + piece.end(), str(piece.lastgroup), 0
        elif word.type == "NAME":
            slot = slot_behind(words[:index])
            kind, modifiers = _BY_SLOT[type(slot)]
            quantity = words[0].type == "REQUIRE" and word in QUANTITIES
            yield word.start, word.end, kind, 2 if quantity else modifiers
        elif word.type in _BY_TERMINAL:
            yield word.start, word.end, _BY_TERMINAL[word.type], 0


def _comments(document: Document) -> Iterator[Token]:
    """Yield the comments, which stand between words."""
    text, end = document.source.text, 0
    for start, after in [*((token.start, token.end) for token in document.tree.tokens), (len(text), len(text))]:
        for mark in _COMMENT.finditer(text, end, max(start, end)):
            yield mark.start(), mark.end(), "comment", 0
        end = max(end, after)
