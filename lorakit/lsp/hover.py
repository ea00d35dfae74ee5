"""Hover: what the word under the mouse means."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorakit.diagnostics import Code, Diagnostic
from lorakit.language.catalogue import page_of, word_pages
from lorakit.language.place import Place
from lorakit.language.syntax import Word
from lorakit.language.targets import read_targets
from lorakit.language.words import KEYWORDS, NONE, QUANTITIES
from lorakit.lsp.document import Document
from lorakit.lsp.model import Model, Unreadable, model_comment
from lorakit.lsp.names import names_of, scope_of
from lorakit.lsp.prose import (
    NONE_TEXT,
    RANK,
    modules,
    name_text,
    option_line,
    plugin_text,
    reach_text,
    target_text,
    word_text,
)
from lorakit.lsp.reading import word_at
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

# a fault of more than that has every word of a line in it
_WORD = re.compile(r"[^\s,;(){}]+")


@dataclass(frozen=True)
class Hint:
    """What is said of the words from one offset to another, as Markdown."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class _Spot:
    """A word with those of its statement before it, in a document whose model may be known."""

    document: Document
    model: Model | None
    before: Sequence[Word]
    word: Word


def hover(
    document: Document, model: Model | Unreadable | None, found: Iterable[Diagnostic], offset: int
) -> Hint | None:
    """Return what is to be said of the word at an offset and of what was found wrong there."""
    hint = _model_hint(document, model, offset) or _word_hint(document, model, offset)
    hints = [*([hint] if hint is not None else []), *_faults(document, found, offset)]
    return Hint("\n\n---\n\n".join(one.text for one in hints), hints[0].start, hints[0].end) if hints else None


def _faults(document: Document, found: Iterable[Diagnostic], offset: int) -> Iterator[Hint]:
    """Yield the titles of the errors of the very word at an offset; the editor itself shows what is wrong there."""
    source = document.source
    for one in found:
        start, end = source.offset(one.line, one.column), source.offset(one.end_line, one.end_column)
        is_word = _WORD.fullmatch(source.text, start, end) is not None
        if one.file == source.name and is_word and start <= offset < end:
            page = page_of(Code(one.code))
            yield Hint(f"**{page.code}: {page.title}** (`lorakit explain {page.code}`)", start, end)


def _model_hint(document: Document, model: Model | Unreadable | None, offset: int) -> Hint | None:
    comment = model_comment(document.source.text)
    if comment is None or not comment.start <= offset <= comment.end:
        return None
    if isinstance(model, Model):
        inventory = model.inventory
        layers = sum(module.shape is not None for module in inventory.modules.values())
        text = (
            f"**{inventory.model_class}**: {inventory.total_parameters:,} parameters, "
            f"{modules(len(inventory.modules) - 1)}, of which an adapter fits {layers}"
        )
    else:
        # why it cannot be read is a warning there, which the editor shows by itself
        text = "being read" if model is None else ""
    return Hint(text, comment.start, comment.end) if text else None


def _word_hint(document: Document, model: Model | Unreadable | None, offset: int) -> Hint | None:
    found = word_at(document.tree, offset)
    if found is None or found[1].type not in _TEXTS:
        return None
    spot = _Spot(document, model if isinstance(model, Model) else None, *found)
    text = _TEXTS[spot.word.type](spot)
    return Hint(text, spot.word.start, spot.word.end) if text else None


def _keyword(spot: _Spot) -> str:
    text, spec = word_text(word_pages()[str(spot.word)]), spot.document.analysis.spec
    if spot.word.type != "QUANT" or spot.model is None or spec is None:
        return text
    here = f"{spot.document.source.name}:"
    said = (line.replace(here, "line ") for line in reach_text(spec, spot.model, spot.document.plugins))
    return "\n\n".join([text, *said])


def _target(spot: _Spot) -> str:
    names = names_of(spot.document, spot.word.start)
    name = names.get(str(spot.word))
    is_list = name is not None and isinstance(name.value, tuple)
    place = Place(spot.document.source)
    targets = read_targets((spot.word,), scope_of(names, spot.document.plugins), place) or ()
    known = name_text(str(spot.word), name) if name is not None and is_list else ""
    named = model_comment(spot.document.source.text) is not None
    advice = "" if named else "A comment `# model: PATH` in this file shows how many modules that are."
    return "\n\n".join(filter(None, [known, target_text(targets, spot.model, spot.document.plugins), advice]))


def _name(spot: _Spot) -> str | None:
    slot = slot_behind(spot.before)
    text: str | None = _NAMES[type(slot)](slot, spot)
    return text


def _plugin(slot: PluginSlot, spot: _Spot) -> str | None:
    if spot.word == NONE and spot.before[0].type == "QUANTIZE":
        return NONE_TEXT
    plugin = plugin_named(spot.word, slot.kind, spot.document.plugins)
    return plugin_text(plugin, slot.kind, spot.document.plugins) if plugin is not None else None


def _option(slot: OptionSlot, spot: _Spot) -> str | None:
    option = options(slot, spot.document.plugins).get(str(spot.word))
    return option_line(option) if option is not None else None


def _choice(slot: ChoiceSlot, spot: _Spot) -> str | None:
    meaning = word_pages()[slot.clause].choices.get(str(spot.word))
    return f"`{slot.clause} {spot.word}`: {meaning}" if meaning is not None else None


def _value(slot: ValueSlot, spot: _Spot) -> str | None:
    word = str(spot.word)
    statement = spot.before[0].type if spot.before else ""
    if word == "rank" and statement == "ADAPT":
        return word_text(RANK)
    if word in QUANTITIES and statement == "REQUIRE":
        return word_text(word_pages()[word])
    return _new_name(slot, spot)


def _new_name(slot: ValueSlot | NewNameSlot, spot: _Spot) -> str | None:
    name = names_of(spot.document).get(str(spot.word))
    return name_text(str(spot.word), name) if name is not None else None


_NAMES: Mapping[type, Callable[[Any, _Spot], str | None]] = {
    PluginSlot: _plugin,
    OptionSlot: _option,
    ChoiceSlot: _choice,
    ValueSlot: _value,
    NewNameSlot: _new_name,
}

_TEXTS: Mapping[str, Callable[[_Spot], str | None]] = {
    **dict.fromkeys((keyword.terminal for keyword in KEYWORDS.values()), _keyword),
    "TARGET": _target,
    "REGEX": _target,
    "NAME": _name,
}
