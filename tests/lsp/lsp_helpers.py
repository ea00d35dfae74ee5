"""An editor for tests: it opens texts in a real server and asks it about the place marked `|`."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from lsprotocol import types
from pygls.protocol import default_converter
from pytest_lsp import LanguageClient
from pytest_lsp.client import DEFAULT_CLIENT_FEATURES, register_lsp_features

SERVER = [sys.executable, "-m", "lorakit", "lsp"]

# A block of attention and one of feed-forward layers, twice; named so that `layers.0.attention.q_proj` exists
FACTORY = """
from torch import nn

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(8, 8)
        self.v_proj = nn.Linear(8, 8)

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention()
        self.up = nn.Linear(8, 16)
        self.norm = nn.LayerNorm(8)

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])

def tiny():
    print("a factory may print")
    return Tiny()

def broken():
    raise RuntimeError("no weights today")
"""


# Seconds until a test gives up: a model's process needs many of them to start on a busy machine
PATIENCE = 300

# Names and versions are never used twice, whatever editor uses them
_COUNT = itertools.count(1)


def marked(text: str) -> tuple[str, types.Position]:
    """Return a text without its mark, and where that stood, for texts of one UTF-16 unit a character."""
    before, _, after = text.partition("|")
    return before + after, types.Position(before.count("\n"), len(before.rpartition("\n")[2]))


def changed(text: str, edits: Sequence[types.TextEdit]) -> str:
    """Return a text of one UTF-16 unit a character with edits made in it."""
    starts = [0, *(place + 1 for place, letter in enumerate(text) if letter == "\n")]
    for edit in sorted(edits, key=lambda edit: (edit.range.start.line, edit.range.start.character), reverse=True):
        start, end = (starts[place.line] + place.character for place in (edit.range.start, edit.range.end))
        text = text[:start] + edit.new_text + text[end:]
    return text


class Client(LanguageClient):
    """A client that keeps everything that is published, by document and in order."""

    def __init__(self) -> None:
        super().__init__(converter_factory=default_converter)
        self.encoding: str | None = None
        self.published: defaultdict[str, asyncio.Queue[types.PublishDiagnosticsParams]] = defaultdict(asyncio.Queue)
        register_lsp_features(self, {**DEFAULT_CLIENT_FEATURES, types.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS: _keep})


def _keep(client: Client, params: types.PublishDiagnosticsParams) -> None:
    client.published[params.uri].put_nowait(params)


class Editor:
    """A client with a folder of files, which gives each text that it opens a name and a version of its own."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.client = client
        self.folder = folder
        self._open: list[str] = []

    def open(self, text: str, name: str = "") -> str:
        """Open a text as a file of the folder, which need not exist on the disk, and return its address."""
        uri = (self.folder / (name or f"untitled{next(_COUNT)}.lora")).as_uri()
        item = types.TextDocumentItem(uri, "lora", next(_COUNT), text)
        self.client.text_document_did_open(types.DidOpenTextDocumentParams(item))
        self._open.append(uri)
        return uri

    def close(self, uri: str) -> None:
        """Close a document."""
        self._open.remove(uri)
        self.client.text_document_did_close(types.DidCloseTextDocumentParams(types.TextDocumentIdentifier(uri)))

    def leave(self) -> None:
        """Close every document that is open."""
        for uri in list(self._open):
            self.close(uri)

    def change(self, uri: str, text: str) -> int:
        """Put a new text in the place of a document's and return its version."""
        version = next(_COUNT)
        self.client.text_document_did_change(
            types.DidChangeTextDocumentParams(
                types.VersionedTextDocumentIdentifier(version, uri),
                [types.TextDocumentContentChangeWholeDocument(text)],
            )
        )
        return version

    async def diagnostics(
        self, uri: str, enough: Callable[[Sequence[types.Diagnostic]], bool] = lambda found: True
    ) -> Sequence[types.Diagnostic]:
        """Return what the server publishes next of a document, or the first of it that is enough."""
        while not enough(found := (await self.published(uri)).diagnostics):
            pass
        return list(found)

    async def published(self, uri: str) -> types.PublishDiagnosticsParams:
        """Return what the server publishes next of a document, with its version."""
        return await asyncio.wait_for(self.client.published[uri].get(), PATIENCE)

    async def found_in(self, text: str) -> Sequence[types.Diagnostic]:
        """Return the diagnostics of a text."""
        return await self.diagnostics(self.open(text))

    async def hover(self, text: str) -> str:
        """Return what the server says of the word at the mark."""
        text, position = marked(text)
        return await self.hover_at(self.open(text), position)

    async def hover_at(self, uri: str, position: types.Position) -> str:
        """Return what the server says of the word at a position."""
        asked = types.HoverParams(types.TextDocumentIdentifier(uri), position)
        hint = await self.client.text_document_hover_async(asked)
        if hint is None:
            return ""
        assert isinstance(hint.contents, types.MarkupContent)
        return hint.contents.value

    async def complete(self, text: str) -> list[types.CompletionItem]:
        """Return what the server offers at the mark."""
        text, position = marked(text)
        return await self.complete_at(self.open(text), position)

    async def complete_at(self, uri: str, position: types.Position) -> list[types.CompletionItem]:
        """Return what the server offers at a position, best first."""
        asked = types.CompletionParams(types.TextDocumentIdentifier(uri), position)
        items = await self.client.text_document_completion_async(asked)
        assert isinstance(items, list)
        return sorted(items, key=lambda item: item.sort_text or item.label)

    async def words(self, text: str) -> list[str]:
        """Return the words that the server offers at the mark."""
        return [item.label for item in await self.complete(text)]
