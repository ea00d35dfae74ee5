"""Slots: what a name means by the words before it. No word of the language is reserved, so the place decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from lorakit.hooks import Plugins
from lorakit.hooks.options import Option, options_of
from lorakit.language.calls import plugins_of
from lorakit.language.syntax import Word
from lorakit.language.words import KEYWORDS
from lorakit.lsp.reading import unclosed


@dataclass(frozen=True)
class PluginSlot:
    """The name of a plugin."""

    kind: str


@dataclass(frozen=True)
class ChoiceSlot:
    """One of the words that a clause chooses from."""

    clause: str


@dataclass(frozen=True)
class OptionSlot:
    """The name of an option, between the parentheses of a plugin."""

    plugin: Word
    kind: str


@dataclass(frozen=True)
class ValueSlot:
    """A name in an expression; `option` is the option whose value it is, if any."""

    option: Word | None = None
    call: OptionSlot | None = None


@dataclass(frozen=True)
class NewNameSlot:
    """The name that a `let` defines."""


Slot: TypeAlias = "PluginSlot | ChoiceSlot | OptionSlot | ValueSlot | NewNameSlot"

_BY_TYPE: Mapping[str, Slot] = {
    **{keyword.terminal: PluginSlot(keyword.plugin) for keyword in KEYWORDS.values() if keyword.plugin},
    **{keyword.terminal: ChoiceSlot(keyword.word) for keyword in KEYWORDS.values() if keyword.choices},
    "TARGET": PluginSlot("quantizer"),
    "REGEX": PluginSlot("quantizer"),
    "LET": NewNameSlot(),
}


def slot_behind(words: Sequence[Word]) -> Slot:
    """Return what a name would be behind these words of its statement."""
    if words and words[-1].type in _BY_TYPE:
        return _BY_TYPE[words[-1].type]
    opened = [index for index in unclosed(words) if words[index].type == "_LPAR"]
    if not opened:
        return ValueSlot()
    bracket = opened[-1]
    call = OptionSlot(words[bracket - 1], called(words[: bracket - 1]))
    if words[-1].type in ("_LPAR", "_COMMA") and unclosed(words)[-1] == bracket:
        return call
    return ValueSlot(_option(words[bracket:]), call)


def called(words: Sequence[Word]) -> str:
    """Return the kind of the plugin whose name stands behind these words."""
    slot = slot_behind(words)
    assert isinstance(slot, PluginSlot)
    return slot.kind


def plugin_named(name: str, kind: str, plugins: Plugins) -> Any:
    """Return the plugin of this name, or None."""
    return plugins_of(kind, plugins).get(name)


def options(slot: OptionSlot, plugins: Plugins) -> Mapping[str, Option]:
    """Return the options of the plugin around a slot, by name; none where there is no such plugin."""
    plugin = plugin_named(slot.plugin, slot.kind, plugins)
    return {option.name: option for option in options_of(plugin)} if plugin is not None else {}


def _option(words: Sequence[Word]) -> Word | None:
    """Return the name of the last option that is given among these words."""
    named = (index for index in range(len(words) - 1, 0, -1) if words[index].type == "_EQUAL")
    return next((words[index - 1] for index in named), None)
