"""Offers: what completion can put in a place."""

from __future__ import annotations

from dataclasses import dataclass

from lsprotocol.types import CompletionItemKind

from lorakit.lsp.document import Document
from lorakit.lsp.model import Model
from lorakit.lsp.reading import Cursor


@dataclass(frozen=True)
class Offer:
    """A word to put from an offset up to the cursor, with what is said of it; lower `order` comes first."""

    word: str
    start: int
    kind: CompletionItemKind
    detail: str = ""
    text: str = ""
    order: int = 0


@dataclass(frozen=True)
class Request:
    """Where in a document, whose model may be known, words are asked for."""

    document: Document
    model: Model | None
    cursor: Cursor
    offset: int

    @property
    def begun(self) -> str:
        """What has been typed of the word."""
        return self.document.source.text[self.cursor.start : self.offset]
