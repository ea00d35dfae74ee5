"""Completion: the words that fit a place, by the terminals that the grammar allows there."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any, Literal

from lsprotocol.types import CompletionItemKind

from lorakit.hooks.options import Option, supports_double
from lorakit.language.amounts import Amount
from lorakit.language.calls import plugins_of
from lorakit.language.catalogue import word_pages
from lorakit.language.words import CLAUSE_TERMINALS, NONE, QUANTITIES, STATEMENTS, clauses_of
from lorakit.lsp.document import Document
from lorakit.lsp.model import Model
from lorakit.lsp.names import names_of
from lorakit.lsp.offers import Offer, Request
from lorakit.lsp.path_offers import path_offers
from lorakit.lsp.prose import (
    NONE_TEXT,
    RANK,
    name_text,
    option_detail,
    option_line,
    plugin_summary,
    plugin_text,
    word_text,
)
from lorakit.lsp.reading import cursor_at, unclosed
from lorakit.lsp.slots import (
    ChoiceSlot,
    NewNameSlot,
    OptionSlot,
    PluginSlot,
    ValueSlot,
    options,
    plugin_named,
    slot_behind,
)
from lorakit.lsp.target_offers import target_offers


def complete(document: Document, model: Model | None, offset: int) -> list[Offer]:
    """Return the words that fit at an offset; none in comments and strings, and where reading got lost."""
    paths = path_offers(document, offset)
    if paths is not None:
        return paths
    cursor = cursor_at(document.tree, offset)
    if cursor is None:
        return []
    request = Request(document, model, cursor, offset)
    return [offer for terminal, offers in _OFFERS.items() if terminal in cursor.accepted for offer in offers(request)]


def _keyword(word: str, request: Request) -> Offer:
    page = word_pages()[word]
    return Offer(word, request.cursor.start, CompletionItemKind.Keyword, page.form, word_text(page))


def _statements(request: Request) -> Iterable[Offer]:
    return (_keyword(word, request) for word in STATEMENTS)


def _clauses(request: Request) -> Iterable[Offer]:
    """Return the clauses that the statement takes and does not have yet."""
    for word, clause in clauses_of(request.cursor.statement).items():
        if clause.terminal not in request.cursor.given:
            yield _keyword(word, request)


def _double(request: Request) -> Iterable[Offer]:
    words = request.cursor.words
    names = (index for index in range(len(words) - 1, 0, -1) if words[index].type == "NAME")
    for index in names:
        slot = slot_behind(words[:index])
        if isinstance(slot, PluginSlot):
            plugin = plugin_named(words[index], slot.kind, request.document.plugins)
            return [_keyword("double", request)] if plugin is not None and supports_double(plugin) else []
    return []


def _truths(request: Request) -> Iterable[Offer]:
    option = _option(request)
    return (_keyword(word, request) for word in ("true", "false")) if option is not None and option.type is bool else ()


def _distributions(request: Request) -> Iterable[Offer]:
    for name, version in request.document.plugins.distributions():
        yield Offer(name, request.cursor.start, CompletionItemKind.Module, version)


def _names(request: Request) -> Iterable[Offer]:
    slot = slot_behind(request.cursor.words)
    offers: Iterable[Offer] = _BY_SLOT[type(slot)](slot, request)
    return offers


def _plugin_names(slot: PluginSlot, request: Request) -> Iterable[Offer]:
    plugins = request.document.plugins
    for name, plugin in plugins_of(slot.kind, plugins).items():
        text = plugin_text(plugin, slot.kind, plugins)
        yield Offer(name, request.cursor.start, CompletionItemKind.Function, plugin_summary(plugin), text)
    if request.cursor.statement == "quantize":
        yield Offer(NONE, request.cursor.start, CompletionItemKind.EnumMember, NONE_TEXT)


def _option_names(slot: OptionSlot, request: Request) -> Iterable[Offer]:
    """Return the options of a plugin that are not given yet."""
    words = request.cursor.words
    inside = words[unclosed(words)[-1] :]
    given = {str(name) for name, equal in pairwise(inside) if equal.type == "_EQUAL"}
    for name, option in options(slot, request.document.plugins).items():
        if name not in given:
            detail, text = option_detail(option), option_line(option)
            yield Offer(f"{name}=", request.cursor.start, CompletionItemKind.Property, detail, text)


def _choices(slot: ChoiceSlot, request: Request) -> Iterable[Offer]:
    for word, meaning in word_pages()[slot.clause].choices.items():
        yield Offer(word, request.cursor.start, CompletionItemKind.EnumMember, meaning)


def _values(slot: ValueSlot, request: Request) -> Iterable[Offer]:
    """Return the names that stand for a value here, and the values that an option chooses from."""
    start, words = request.cursor.start, request.cursor.words
    option = _option(request)
    for name, found in names_of(request.document, start).items():
        if isinstance(found.value, Amount) or (isinstance(found.value, str) and option is not None):
            text = name_text(name, found)
            yield Offer(name, start, CompletionItemKind.Variable, found.shown, text)
    clause = next((word.type for word in reversed(words) if word.type in CLAUSE_TERMINALS), "RANK")
    if request.cursor.statement == "adapt" and clause != "RANK":
        yield Offer("rank", start, CompletionItemKind.Variable, RANK.meaning, word_text(RANK), order=1)
    if request.cursor.statement == "require":
        for name in QUANTITIES:
            yield Offer(name, start, CompletionItemKind.Constant, word_pages()[name].meaning, order=-1)
    if option is not None and typing.get_origin(option.type) is Literal:
        for order, value in enumerate(typing.get_args(option.type)):
            word = f'"{value}"' if isinstance(value, str) else str(value)
            yield Offer(word, start, CompletionItemKind.EnumMember, order=order - 100)


def _nothing(slot: NewNameSlot, request: Request) -> Iterable[Offer]:
    return ()


def _option(request: Request) -> Option | None:
    """Return the option whose value is asked for."""
    slot = slot_behind(request.cursor.words)
    if not isinstance(slot, ValueSlot) or slot.call is None or slot.option is None:
        return None
    return options(slot.call, request.document.plugins).get(str(slot.option))


_BY_SLOT: Mapping[type, Callable[[Any, Request], Iterable[Offer]]] = {
    PluginSlot: _plugin_names,
    OptionSlot: _option_names,
    ChoiceSlot: _choices,
    ValueSlot: _values,
    NewNameSlot: _nothing,
}

# One terminal stands for all that come in the same places
_OFFERS: Mapping[str, Callable[[Request], Iterable[Offer]]] = {
    "ADAPT": _statements,
    "RANK": _clauses,
    "DOUBLE": _double,
    "TARGET": target_offers,
    "NAME": _names,
    "TRUE": _truths,
    "DISTRIBUTION": _distributions,
}
