"""Targets to offer: lists, roles, and the modules and classes of a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from lsprotocol.types import CompletionItemKind

from lorakit.language.place import Place
from lorakit.language.statements import Target
from lorakit.language.syntax import Word
from lorakit.language.targets import read_targets
from lorakit.lsp.model import Model
from lorakit.lsp.names import names_of, scope_of
from lorakit.lsp.offers import Offer, Request
from lorakit.lsp.prose import count_text, modules, name_text, role_summary
from lorakit.planning.inventory import ModuleInfo

# What has been typed of a target: whole segments, and the one at the cursor
_BEGUN = re.compile(r"(?P<whole>(?:[^\[\]]|\[[^\]]*\])*\.)?(?P<last>[^.\[\]]*)")


def target_offers(request: Request) -> Iterable[Offer]:
    """Return what can stand as a target or as the next segment of one."""
    begun = _BEGUN.fullmatch(request.begun)
    if begun is None:
        return
    whole, last = begun["whole"] or "", begun["last"]
    start = request.cursor.start + len(whole)
    above = _target(whole[:-1], request) if whole[:-1] else None
    if whole and above is None:
        return
    if last[:1] in ("", "@"):
        yield from _roles(above, start, request)
    if request.model is not None and last[:1] == ":":
        yield from _classes(above, start, request.model)
    if request.model is not None and last[:1] not in ("@", ":"):
        yield from _modules(above, start, request.model)
    if not whole and last[:1] not in ("@", ":"):
        yield from _lists(start, request)


def _target(words: str, request: Request) -> Target | None:
    place = Place(request.document.source)
    targets = read_targets(
        (Word(words, "TARGET", request.cursor.start),), scope_of({}, request.document.plugins), place
    )
    return targets[0] if targets and targets[0].role is None and targets[0].class_name is None else None


def _roles(above: Target | None, start: int, request: Request) -> Iterable[Offer]:
    for name, role in request.document.plugins.roles.items():
        target = replace(above or Target(), role=name, span=None)
        count = f"{modules(len(request.model.matches(target)))}: " if request.model is not None else ""
        text = count_text(target, request.model) if request.model is not None else ""
        summary = role_summary(role)
        yield Offer(f"@{name}", start, CompletionItemKind.Interface, count + summary, f"{summary}\n\n{text}", order=1)


def _classes(above: Target | None, start: int, model: Model) -> Iterable[Offer]:
    for name, found in model.classes(above).items():
        yield Offer(f":{name}", start, CompletionItemKind.Class, modules(len(found)), order=_order(found))


def _modules(above: Target | None, start: int, model: Model) -> Iterable[Offer]:
    for name, found in model.named(above).items():
        if above is not None or not name.isdecimal():
            yield Offer(name, start, CompletionItemKind.Module, _detail(found), order=_order(found))


def _lists(start: int, request: Request) -> Iterable[Offer]:
    for name, found in names_of(request.document, start).items():
        if isinstance(found.value, tuple):
            yield Offer(name, start, CompletionItemKind.Variable, found.shown, name_text(name, found), order=-1)


def _order(found: Iterable[ModuleInfo]) -> int:
    """Return 0 where an adapter fits one of these modules, else more."""
    return 0 if any(module.shape is not None for module in found) else 2


def _detail(found: Iterable[ModuleInfo]) -> str:
    """Return the classes of modules with their counts."""
    return ", ".join(f"{count} × {name}" for name, count in Counter(module.class_name for module in found).items())
