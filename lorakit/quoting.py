"""What messages say of input that may be of any length and content: cut to what a screen shows, and visible."""

from __future__ import annotations

import re

# a message quotes what it was given, which may be of any length: a screen of it is shown
MAX_CHARACTERS, MAX_LINES, MAX_QUOTED = 4_000, 64, 120
# what a terminal would obey, hide or reorder, and what no encoding takes
_UNSEEN = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"


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


def cut(text: str, most: int = MAX_CHARACTERS // 10) -> str:
    """Return a sentence with its middle left out where it is longer than so many characters."""
    return text if len(text) <= most else f"{text[: most * 2 // 3]}… {text[-most // 6 :]}"


def visible(message: str) -> str:
    """Return a message with what a terminal would obey, hide or reorder as escapes; lines and tabs stay."""
    return re.sub(_UNSEEN, _escaped, message)


def _escaped(character: re.Match[str]) -> str:
    return character[0].encode("unicode_escape").decode("ascii")
