"""Requests about the names and the shape of a document, each answered by one small function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lsprotocol import types
from pygls.exceptions import JsonRpcInvalidParams

from lorakit.errors import LorakitError
from lorakit.lsp.diagnostics import NOWHERE, problem, uri_of
from lorakit.lsp.folding import folds
from lorakit.lsp.hints import inlays
from lorakit.lsp.links import links
from lorakit.lsp.model import Model
from lorakit.lsp.occurrences import Occurrence, RenameError, in_programs, name_at, occurrences, renamed
from lorakit.lsp.ranges import formatted
from lorakit.lsp.signature import signature
from lorakit.lsp.symbols import symbols
from lorakit.lsp.tokens import MODIFIERS, TYPES, encoded

if TYPE_CHECKING:
    from lorakit.lsp.server import Server

# Of more symbols nobody reads the list
_MOST_SYMBOLS = 500


def _place(one: Occurrence) -> types.Location:
    place = one.document.positions_in(one.file).range(one.start, one.end)
    return types.Location(uri_of(one.file, one.document), place)


def _references(ls: Server, params: types.ReferenceParams) -> list[types.Location]:
    document = ls.session.document(params.text_document.uri)
    found = name_at(document, document.positions.offset(params.position))
    if found is None:
        return []
    every = in_programs([document, *ls.session.programs()], found[0])
    return [_place(one) for one in every if params.context.include_declaration or not one.defines]


def _highlights(ls: Server, params: types.DocumentHighlightParams) -> list[types.DocumentHighlight] | None:
    document = ls.session.document(params.text_document.uri)
    found = name_at(document, document.positions.offset(params.position))
    if found is None:
        return None
    kinds = {True: types.DocumentHighlightKind.Write, False: types.DocumentHighlightKind.Read}
    return [
        types.DocumentHighlight(document.positions.range(one.start, one.end), kinds[one.defines])
        for one in occurrences(document, found[0])
        if one.file == document.source.name
    ]


def _prepare_rename(ls: Server, params: types.PrepareRenameParams) -> types.PrepareRenamePlaceholder | None:
    document = ls.session.document(params.text_document.uri)
    found = name_at(document, document.positions.offset(params.position))
    if found is None:
        return None
    word = found[1]
    return types.PrepareRenamePlaceholder(document.positions.range(word.start, word.end), str(word))


def _rename(ls: Server, params: types.RenameParams) -> types.WorkspaceEdit | None:
    document = ls.session.document(params.text_document.uri)
    found = name_at(document, document.positions.offset(params.position))
    if found is None:
        return None
    try:
        places = map(_place, renamed([document, *ls.session.programs()], found[0], params.new_name))
    except RenameError as error:
        raise JsonRpcInvalidParams(str(error)) from error
    changes: dict[str, list[types.TextEdit]] = {}
    for place in places:
        changes.setdefault(place.uri, []).append(types.TextEdit(place.range, params.new_name))
    return types.WorkspaceEdit(changes)


def _folding(ls: Server, params: types.FoldingRangeParams) -> list[types.FoldingRange]:
    return list(folds(ls.session.document(params.text_document.uri)))


def _tokens(ls: Server, params: types.SemanticTokensParams) -> types.SemanticTokens:
    document = ls.session.document(params.text_document.uri)
    return types.SemanticTokens(encoded(document, 0, len(document.source.text)))


def _tokens_between(ls: Server, params: types.SemanticTokensRangeParams) -> types.SemanticTokens:
    document = ls.session.document(params.text_document.uri)
    start, end = map(document.positions.offset, (params.range.start, params.range.end))
    return types.SemanticTokens(encoded(document, start, end))


def _inlays(ls: Server, params: types.InlayHintParams) -> list[types.InlayHint]:
    uri = params.text_document.uri
    document, model = ls.session.document(uri), ls.session.model(uri)
    if not isinstance(model, Model):
        return []
    positions = document.positions
    start, end = positions.offset(params.range.start), positions.offset(params.range.end)
    return [
        types.InlayHint(
            positions.position(one.offset),
            one.label,
            tooltip=types.MarkupContent(types.MarkupKind.Markdown, one.text),
            padding_left=True,
            padding_right=True,
        )
        for one in inlays(document, model, start, end)
    ]


def _links(ls: Server, params: types.DocumentLinkParams) -> list[types.DocumentLink]:
    document = ls.session.document(params.text_document.uri)
    return [
        types.DocumentLink(document.positions.range(one.start, one.end), one.target) for one in links(document)
    ]  # fmt: skip


def _signature(ls: Server, params: types.SignatureHelpParams) -> types.SignatureHelp | None:
    document = ls.session.document(params.text_document.uri)
    found = signature(document, document.positions.offset(params.position))
    if found is None:
        return None
    said = [
        types.ParameterInformation(words, types.MarkupContent(types.MarkupKind.Markdown, text))
        for words, text in found.parameters
    ]
    # an index beyond the last marks none
    active = found.active if found.active is not None else len(said)
    return types.SignatureHelp([types.SignatureInformation(found.label, found.text, said, active)], 0, active)


def _formatting(ls: Server, params: types.DocumentRangeFormattingParams) -> list[types.TextEdit]:
    document = ls.session.document(params.text_document.uri)
    positions = document.positions
    start, end = positions.offset(params.range.start), positions.offset(params.range.end)
    return [types.TextEdit(positions.range(first, last), new) for first, last, new in formatted(document, start, end)]


def _workspace(ls: Server, params: types.WorkspaceSymbolParams) -> list[types.WorkspaceSymbol]:
    query = params.query.casefold()
    found = [
        types.WorkspaceSymbol(types.Location(document.uri, one.selection_range), one.name, one.kind)
        for document in ls.session.programs()
        for one in symbols(document)
        if query in one.name.casefold()
    ]
    return found[:_MOST_SYMBOLS]


def _diagnostics(ls: Server, params: types.DocumentDiagnosticParams) -> types.RelatedFullDocumentDiagnosticReport:
    uri = params.text_document.uri
    try:
        found = ls.session.diagnostics(uri)
    except LorakitError as error:
        found = [problem(NOWHERE, str(error))]
    return types.RelatedFullDocumentDiagnosticReport(found)


REQUESTS: Mapping[str, tuple[Callable[..., Any], Any]] = {
    types.TEXT_DOCUMENT_REFERENCES: (_references, None),
    types.TEXT_DOCUMENT_DOCUMENT_HIGHLIGHT: (_highlights, None),
    types.TEXT_DOCUMENT_PREPARE_RENAME: (_prepare_rename, None),
    types.TEXT_DOCUMENT_RENAME: (_rename, types.RenameOptions(prepare_provider=True)),
    types.TEXT_DOCUMENT_FOLDING_RANGE: (_folding, None),
    types.TEXT_DOCUMENT_SEMANTIC_TOKENS_FULL: (_tokens, types.SemanticTokensLegend(TYPES, MODIFIERS)),
    types.TEXT_DOCUMENT_SEMANTIC_TOKENS_RANGE: (_tokens_between, types.SemanticTokensLegend(TYPES, MODIFIERS)),
    types.TEXT_DOCUMENT_INLAY_HINT: (_inlays, None),
    types.TEXT_DOCUMENT_DOCUMENT_LINK: (_links, None),
    types.TEXT_DOCUMENT_SIGNATURE_HELP: (_signature, types.SignatureHelpOptions(["(", ",", "="])),
    types.TEXT_DOCUMENT_RANGE_FORMATTING: (_formatting, None),
    types.WORKSPACE_SYMBOL: (_workspace, None),
    types.TEXT_DOCUMENT_DIAGNOSTIC: (_diagnostics, types.DiagnosticOptions(True, False, "lorakit")),
}
