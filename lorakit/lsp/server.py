"""The server: requests of the protocol, each answered by one small function."""

from __future__ import annotations

import logging
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
from lorakit.lsp.actions import Fix, all_fixes, fixes
from lorakit.lsp.completion import complete
from lorakit.lsp.definition import definition
from lorakit.lsp.diagnostics import model_problem, published, uri_of
from lorakit.lsp.document import Document
from lorakit.lsp.hover import hover
from lorakit.lsp.model import Model, Unreadable, model_comment
from lorakit.lsp.models import Models
from lorakit.lsp.occurrences import RenameError
from lorakit.lsp.offers import Offer
from lorakit.lsp.positions import Positions
from lorakit.lsp.requests import REQUESTS
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
            publish, pulls = self.text_document_publish_diagnostics, self._pulls
            self._session = Session(self.workspace, models, self._plugins, publish, pulls, self._renewed)
        return self._session

    @property
    def _pulls(self) -> bool:
        """Whether the client asks for diagnostics: then none are sent, since an editor shows both."""
        known = self.client_capabilities.text_document
        return known is not None and known.diagnostic is not None

    def _renewed(self) -> None:
        """Have the client ask again for what a model has changed."""
        known = self.client_capabilities.workspace
        if known is not None and known.inlay_hint is not None and known.inlay_hint.refresh_support:
            self.workspace_inlay_hint_refresh(None)
        if self._pulls and known is not None and known.diagnostics is not None and known.diagnostics.refresh_support:
            self.workspace_diagnostic_refresh(None)


def serve(read_models: bool) -> None:
    """Answer a client on standard input and output until it leaves."""
    # whatever else prints goes to standard error: a stray line would end the conversation
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.getLogger("pygls.protocol.json_rpc").addFilter(_is_fault)
    server = Server(default_plugins(), read_models)
    for feature, (handler, options) in {**_FEATURES, **REQUESTS}.items():
        server.feature(feature, options)(handler)
    server.start_io(sys.stdin.buffer, answers)


def _is_fault(record: logging.LogRecord) -> bool:
    """Return whether a record tells of a fault, and not of what the client is told: why a name cannot be called so."""
    error = record.exc_info[1] if record.exc_info else None
    return error is None or not isinstance(error.__cause__, RenameError)


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
    uri, wanted = params.text_document.uri, params.context.only or _KINDS
    document = ls.session.document(uri)
    found, positions = ls.session.found(uri), document.positions
    start, end = positions.offset(params.range.start), positions.offset(params.range.end)
    actions = []
    if types.CodeActionKind.QuickFix in wanted:
        actions += [
            types.CodeAction(
                fix.title, types.CodeActionKind.QuickFix, published([fix.found], document),
                is_preferred=fix.sure, edit=_edit([fix], uri, positions),
            )
            for fix in fixes(found, document, start, end)
        ]  # fmt: skip
        actions += _model_action(ls, document, start, end)
    if any(kind.startswith(_ALL) or _ALL.startswith(f"{kind}.") for kind in wanted):
        every = all_fixes(found, document)
        if every and (params.context.only or len(every) > 1):
            title, kind = "Do everything that lorakit suggests", types.CodeActionKind.SourceFixAll
            actions.append(types.CodeAction(title, kind, edit=_edit(every, uri, positions)))
    return actions


def _edit(made: list[Fix], uri: str, positions: Positions) -> types.WorkspaceEdit:
    return types.WorkspaceEdit(
        {uri: [types.TextEdit(positions.range(fix.start, fix.end), fix.words) for fix in made]}
    )  # fmt: skip


def _model_action(ls: Server, document: Document, start: int, end: int) -> list[types.CodeAction]:
    """Return the model that was probably meant, where the comment names one that is not there."""
    model, comment = ls.session.model(document.uri), model_comment(document.source.text)
    if not isinstance(model, Unreadable) or model.near is None or comment is None:
        return []
    if comment.start > end or comment.end < start:
        return []
    change = types.TextEdit(document.positions.range(comment.start, comment.end), model.near)
    edit = types.WorkspaceEdit({document.uri: [change]})
    found, title = model_problem(model, document), f"Replace with `{model.near}`"
    return [types.CodeAction(title, types.CodeActionKind.QuickFix, found, is_preferred=True, edit=edit)]


_ALL = types.CodeActionKind.SourceFixAll.value
_KINDS = [types.CodeActionKind.QuickFix, types.CodeActionKind.SourceFixAll]

_FEATURES: Mapping[str, tuple[Callable[..., Any], Any]] = {
    types.TEXT_DOCUMENT_DID_OPEN: (_opened, None),
    types.TEXT_DOCUMENT_DID_CHANGE: (_changed, None),
    types.TEXT_DOCUMENT_DID_SAVE: (_saved, None),
    types.TEXT_DOCUMENT_DID_CLOSE: (_closed, None),
    types.WORKSPACE_DID_CHANGE_WATCHED_FILES: (_watched, None),
    types.TEXT_DOCUMENT_HOVER: (_hover, None),
    types.TEXT_DOCUMENT_COMPLETION: (_completion, types.CompletionOptions(["@", ".", ":", "(", "/", '"'])),
    types.TEXT_DOCUMENT_FORMATTING: (_formatting, None),
    types.TEXT_DOCUMENT_DEFINITION: (_definition, None),
    types.TEXT_DOCUMENT_DOCUMENT_SYMBOL: (_symbols, None),
    types.TEXT_DOCUMENT_CODE_ACTION: (_actions, types.CodeActionOptions(_KINDS)),
}
