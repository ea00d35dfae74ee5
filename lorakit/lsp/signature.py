"""Signatures: the options of the plugin whose parentheses the cursor is in."""

from __future__ import annotations

from dataclasses import dataclass

from lorakit.lsp.document import Document
from lorakit.lsp.prose import option_detail, option_line, plugin_summary
from lorakit.lsp.reading import cursor_at, unclosed
from lorakit.lsp.slots import OptionSlot, ValueSlot, options, plugin_named, slot_behind


@dataclass(frozen=True)
class Signature:
    """A plugin with its options as words, what is said of each, and which of them is being given."""

    label: str
    text: str
    parameters: tuple[tuple[str, str], ...]
    active: int | None


def signature(document: Document, offset: int) -> Signature | None:
    """Return the signature around an offset, or None outside of a plugin's parentheses."""
    cursor = cursor_at(document.tree, offset)
    if cursor is None or not unclosed(cursor.words):
        return None
    slot = slot_behind(cursor.words)
    call = slot.call if isinstance(slot, ValueSlot) else slot
    if not isinstance(call, OptionSlot):
        return None
    plugin, known = plugin_named(call.plugin, call.kind, document.plugins), options(call, document.plugins)
    if plugin is None:
        return None
    begun = document.source.text[cursor.start : offset]
    named = str(slot.option) if isinstance(slot, ValueSlot) else _meant(begun, list(known))
    parameters = tuple((f"{name}: {option_detail(option)}", option_line(option)) for name, option in known.items())
    label = f"{call.plugin}({', '.join(words for words, _ in parameters)})"
    active = list(known).index(named) if named in known else None
    return Signature(label, plugin_summary(plugin), parameters, active)


def _meant(begun: str, names: list[str]) -> str:
    """Return the option that a word has begun, if it is only one."""
    fitting = [name for name in names if name.startswith(begun)]
    return fitting[0] if begun and len(fitting) == 1 else ""
