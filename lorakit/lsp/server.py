"""The server: requests of the protocol, each answered by one small function."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from lsprotocol import types
from pygls.lsp.server import LanguageServer

import lorakit
from lorakit.errors import SpecError
from lorakit.hooks import Plugins
from lorakit.language.format import format_tree
from lorakit.lsp.actions import fixes
from lorakit.lsp.completion import complete
from lorakit.lsp.definition import definition
from lorakit.lsp.diagnostics import published, uri_of
from lorakit.lsp.hover import hover
from lorakit.lsp.model import Model
from lorakit.lsp.models import Models
from lorakit.lsp.offers import Offer
from lorakit.lsp.positions import Positions
from lorakit.lsp.session import Session
from lorakit.lsp.symbols import symbols
from lorakit.plugins import default_plugins


class Server(LanguageServer):
    """A language server; its session begins with the client's first document."""

    def __init__(self, plugins: Plugins, read_models: bool) -> None:
        # lines of a text are counted in ways that differ, so every change brings the whole text
        super().__init__("lorakit", lorakit.__version__, types.TextDocumentSyncKind.Full)
        self._plugins = plugins
        self._read_models = read_models
        self._session: Session | None = None

    @property
    def session(self) -> Session:
        if self._session is None:
            models = Models(self._plugins, self._read_models)
            self._session = Session(self.workspace, models, self._plugins, self.text_document_publish_diagnostics)
        return self._session


def serve(read_models: bool) -> None:
    """Answer a client on standard input and output until it leaves."""
    # whatever else prints goes to standard error: a stray line would end the conversation
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    server = Server(default_plugins(), read_models)
    for feature, (handler, options) in _FEATURES.items():
        server.feature(feature, options)(handler)
    server.start_io(sys.stdin.buffer, answers)


def _opened(ls: Server, params: types.DidOpenTextDocumentParams) -> None:
    ls.session.changed(params.text_document.uri)


def _changed(ls: Server, params: types.DidChangeTextDocumentParams) -> None:
    ls.session.changed(params.text_document.uri)


def _saved(ls: Server, params: types.DidSaveTextDocumentParams) -> None:
    ls.session.refresh()


def _watched(ls: Server, params: types.DidChangeWatchedFilesParams) -> None:
    ls.session.refresh()


def _closed(ls: Server, params: types.DidCloseTextDocumentParams) -> None:
    ls.session.closed(params.text_document.uri)


def _hover(ls: Server, params: types.HoverParams) -> types.Hover | None:
    uri = params.text_document.uri
    document = ls.session.document(uri)
    hint = hover(
        document, ls.session.model(uri), ls.session.found(uri), document.positions.offset(params.position)
    )  # fmt: skip
    if hint is None:
        return None
    text = types.MarkupContent(types.MarkupKind.Markdown, hint.text)
    return types.Hover(text, document.positions.range(hint.start, hint.end))


def _completion(ls: Server, params: types.CompletionParams) -> list[types.CompletionItem]:
    uri = params.text_document.uri
    document, model = ls.session.document(uri), ls.session.model(uri)
    offset = document.positions.offset(params.position)
    offers = complete(document, model if isinstance(model, Model) else None, offset)
    return [_item(offer, offset, document.positions) for offer in offers]


def _item(offer: Offer, offset: int, positions: Positions) -> types.CompletionItem:
    return types.CompletionItem(
        offer.word,
        kind=offer.kind,
        detail=offer.detail or None,
        documentation=types.MarkupContent(types.MarkupKind.Markdown, offer.text) if offer.text else None,
        sort_text=f"{offer.order + 500:03}{offer.word}",
        text_edit=types.TextEdit(positions.range(offer.start, offset), offer.word),
    )


def _formatting(ls: Server, params: types.DocumentFormattingParams) -> list[types.TextEdit]:
    document = ls.session.document(params.text_document.uri)
    text = document.source.text
    try:
        formatted = format_tree(document.tree)
    except SpecError:
        return []
    return [types.TextEdit(document.positions.range(0, len(text)), formatted)] if formatted != text else []


def _definition(ls: Server, params: types.DefinitionParams) -> types.Location | None:
    document = ls.session.document(params.text_document.uri)
    found = definition(document, document.positions.offset(params.position))
    if found is None:
        return None
    place = document.positions_in(found.file).range(found.start, found.end)
    return types.Location(uri_of(found.file, document), place)


def _symbols(ls: Server, params: types.DocumentSymbolParams) -> list[types.DocumentSymbol]:
    return list(symbols(ls.session.document(params.text_document.uri)))


def _actions(ls: Server, params: types.CodeActionParams) -> list[types.CodeAction]:
    uri = params.text_document.uri
    document = ls.session.document(uri)
    positions = document.positions
    start, end = positions.offset(params.range.start), positions.offset(params.range.end)
    return [
        types.CodeAction(
            f"Replace with `{fix.words}`",
            types.CodeActionKind.QuickFix,
            diagnostics=published([fix.found], document),
            is_preferred=True,
            edit=types.WorkspaceEdit({uri: [types.TextEdit(positions.range(fix.start, fix.end), fix.words)]}),
        )
        for fix in fixes(ls.session.found(uri), document, start, end)
    ]


_FEATURES: Mapping[str, tuple[Callable[..., Any], Any]] = {
    types.TEXT_DOCUMENT_DID_OPEN: (_opened, None),
    types.TEXT_DOCUMENT_DID_CHANGE: (_changed, None),
    types.TEXT_DOCUMENT_DID_SAVE: (_saved, None),
    types.TEXT_DOCUMENT_DID_CLOSE: (_closed, None),
    types.WORKSPACE_DID_CHANGE_WATCHED_FILES: (_watched, None),
    types.TEXT_DOCUMENT_HOVER: (_hover, None),
    types.TEXT_DOCUMENT_COMPLETION: (_completion, types.CompletionOptions(["@", ".", ":", "("])),
    types.TEXT_DOCUMENT_FORMATTING: (_formatting, None),
    types.TEXT_DOCUMENT_DEFINITION: (_definition, None),
    types.TEXT_DOCUMENT_DOCUMENT_SYMBOL: (_symbols, None),
    types.TEXT_DOCUMENT_CODE_ACTION: (_actions, types.CodeActionOptions([types.CodeActionKind.QuickFix])),
}
