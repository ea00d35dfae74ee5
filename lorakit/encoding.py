"""What stands for a character that the encoding of a terminal, a pipe or a log file has no place for."""

from __future__ import annotations

import codecs

# plain forms of what lorakit itself prints; whatever else is missing is shown by its code point
ASCII_FORMS = {
    "→": "->", "×": "x", "…": "...", "·": "*", "−": "-", "–": "-", "—": "-", "─": "-", "‖": "||", "≤": "<=", "≥": ">=",
    "≠": "!=", "±": "+-", "Ŵ": "W'", "²": "^2", "₀": "0", "₁": "1", "σ": "sigma", "α": "alpha", "‘": "'", "’": "'",
    "“": '"', "”": '"', "•": "*", "█": "#", "│": "|",
}  # fmt: skip
ERRORS = "lorakit.ascii"


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    shown = (ASCII_FORMS.get(one) or one.encode("ascii", "backslashreplace").decode() for one in missing)
    return "".join(shown), error.end


# a stream that is opened or configured with `errors=ERRORS` writes any text
codecs.register_error(ERRORS, _plain)


def encodable(text: str, encoding: str) -> str:
    """Return a text with plain forms for the characters that an encoding lacks."""
    return text.encode(encoding, ERRORS).decode(encoding)
