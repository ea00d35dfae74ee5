"""Every error that lorakit raises for what a user gave it."""

from __future__ import annotations

import re

from lorakit.diagnostics import Diagnostic

# a message quotes what it was given, which may be of any length: a screen of it is shown
MAX_CHARACTERS, MAX_LINES, MAX_QUOTED = 4_000, 50, 120
# what a terminal would obey, hide or reorder, and what no encoding takes
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class LorakitError(Exception):
    """Base of all errors that a user's input can cause; the message is a screen long at most."""

    def __init__(self, message: str = "") -> None:
        super().__init__(_UNSEEN.sub(_escaped, one_screen(message)))


def one_screen(message: str) -> str:
    """Return a message with its middle left out where it is long: it begins with what is wrong, and ends with help."""
    lines = message.split("\n", MAX_LINES)
    if len(lines) > MAX_LINES:
        left_out = 1 + lines.pop().count("\n")
        lines.append(f"… and {left_out:,} lines more")
        message = "\n".join(lines)
    if len(message) > MAX_CHARACTERS:
        head, tail = MAX_CHARACTERS * 2 // 3, MAX_CHARACTERS // 6
        left_out = len(message) - head - tail
        message = f"{message[:head]}… ({left_out:,} characters left out) …{message[-tail:]}"
    return message


def shown(value: object) -> str:
    """Return a value as a message quotes it, of any depth and length: what is long is cut."""
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 200:
        return "an integer of more than 60 digits"
    text = repr(value)
    return text if len(text) <= MAX_QUOTED else f"{text[: MAX_QUOTED - 20]}… {text[-15:]}"


def named(name: str) -> str:
    """Return a name between backticks, cut where it is long."""
    return f"`{name}`" if len(name) <= MAX_QUOTED else f"`{name[: MAX_QUOTED - 20]}… {name[-15:]}`"


def _escaped(character: re.Match[str]) -> str:
    return character[0].encode("unicode_escape").decode("ascii")


class SpecError(LorakitError):
    """A spec that does not parse or means nothing; holds every diagnostic of the file."""

    def __init__(self, diagnostics: tuple[Diagnostic, ...], rendered: str) -> None:
        super().__init__(rendered)
        self.diagnostics = diagnostics


class PlanError(LorakitError):
    """A spec that is sound in itself but does not fit this model."""

    def __init__(self, message: str, diagnostics: tuple[Diagnostic, ...] = ()) -> None:
        super().__init__(message)
        self.diagnostics = diagnostics


class ModelError(LorakitError):
    """A model reference that cannot be read, or a model that cannot be used."""


class AdapterError(LorakitError):
    """An adapter folder that is missing, damaged, unsafe or made for another model."""


class DataError(LorakitError):
    """Training data that cannot be read or used."""


class PluginError(LorakitError):
    """A plugin that failed; the message names it with its distribution and version."""


class OutputError(LorakitError):
    """An output place that cannot be used; nothing was written."""


class WriteError(Exception):
    """The work itself failed, for example on a full disk; what stood at the output place before is untouched."""
