"""Diagnostics as people, editors and continuous integration read them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict

from lorakit.diagnostics import HELP, Diagnostic
from lorakit.language.source import OPTION, SourceText

# what an error shows; a command that lists what is wrong shows more
ON_A_SCREEN, ON_A_LIST = 8, 200
# Of a longer line only a window around the words is shown
_WIDTH = 110
_BEFORE = 30

_BLUE, _BOLD, _RESET = "\x1b[1;34m", "\x1b[1m", "\x1b[0m"
_BY_SEVERITY = {"error": "\x1b[1;31m", "warning": "\x1b[1;33m"}

# Control and format characters, lone surrogates, line and paragraph separators
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def render_text(
    diagnostics: Iterable[Diagnostic], sources: Mapping[str, str], color: bool = False, most: int = ON_A_SCREEN
) -> str:
    """Return diagnostics as text, each with its source line and carets under its words; so many of them at most."""
    texts = {name: SourceText(name, text) for name, text in sources.items()}
    every = tuple(diagnostics)
    parts = [_one(diagnostic, texts.get(diagnostic.file), color) for diagnostic in every[:most]]
    if (more := len(every) - most) > 0:
        parts.append(f"… and {more:,} problems more")
    return "\n\n".join(parts)


def render_json(diagnostics: Iterable[Diagnostic]) -> str:
    """Return diagnostics as a JSON array."""
    import json

    return json.dumps([asdict(diagnostic) for diagnostic in diagnostics], indent=2)


def render_github(diagnostics: Iterable[Diagnostic]) -> str:
    """Return diagnostics as GitHub annotations, one a line."""
    return "\n".join(map(_annotation, diagnostics))


RENDERERS: Mapping[str, Callable[[Iterable[Diagnostic]], str]] = {"json": render_json, "github": render_github}


def _one(diagnostic: Diagnostic, source: SourceText | None, color: bool) -> str:
    def paint(style: str, text: str) -> str:
        return f"{style}{text}{_RESET}" if color and text else text

    # an option of the command line has no lines
    is_option = diagnostic.file.startswith(OPTION)
    number = " " if is_option else str(diagnostic.line)
    place = "" if is_option else f":{diagnostic.line}:{diagnostic.column}"
    gutter, style = " " * len(number), _BY_SEVERITY[diagnostic.severity]
    bar = paint(_BLUE, "|")
    lines = [
        paint(style, f"{diagnostic.severity}[{diagnostic.code}]") + paint(_BOLD, f": {visible(diagnostic.message)}"),
        f"{gutter}{paint(_BLUE, '-->')} {visible(diagnostic.file)}{place}",
    ]
    if source is not None:
        text, indent, carets = _excerpt(source.line(diagnostic.line), diagnostic)
        lines += [
            f"{gutter} {bar}",
            f"{paint(_BLUE, number)} {bar} {text}".rstrip(),
            f"{gutter} {bar} {indent}{paint(style, carets)}",
        ]
    lines += [f"{gutter} {paint(_BLUE, '=')} {visible(advice)}" for advice in _advice(diagnostic)]
    return "\n".join(lines)


def _advice(diagnostic: Diagnostic) -> list[str]:
    """Return the lines of help and the notes below a diagnostic."""
    help_ = [f"{HELP}{diagnostic.suggestion}"] if diagnostic.suggestion is not None else []
    return help_ + [note if note.startswith(HELP) else f"note: {note}" for note in diagnostic.notes]


def _excerpt(line: str, diagnostic: Diagnostic) -> tuple[str, str, str]:
    """Return a source line as shown, the indent of the carets, and the carets."""
    first = diagnostic.column - 1
    last = diagnostic.end_column - 1 if diagnostic.end_line == diagnostic.line else len(line)
    start = max(0, first - _BEFORE) if len(line) > _WIDTH else 0
    end = start + _WIDTH
    lead = "…" if start else ""
    text = lead + visible(line[start:end]) + ("…" if end < len(line) else "")
    carets = max(1, _cells(line[first : min(last, end)]))
    return text, " " * (len(lead) + _cells(line[start:first].ljust(first - start))), "^" * carets


def visible(text: str) -> str:
    """Return text with every character that a terminal would obey, hide or reorder replaced by one that it shows."""
    return text if text.isascii() and text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character == "\t":
        return " "
    if character < " ":
        return chr(0x2400 + ord(character))
    return "\ufffd" if unicodedata.category(character) in _UNSEEN else character


def _cells(text: str) -> int:
    """Return how many cells of a terminal a text takes: wide characters two, combining ones none."""
    return len(text) if text.isascii() else sum(map(_cell, text))


def _cell(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def _annotation(diagnostic: Diagnostic) -> str:
    place = {
        "file": diagnostic.file,
        "line": diagnostic.line,
        "col": diagnostic.column,
        "endLine": diagnostic.end_line,
        "endColumn": diagnostic.end_column,
        "title": f"lorakit {diagnostic.code}",
    }
    properties = ",".join(f"{name}={_escaped(str(value), _PROPERTY)}" for name, value in place.items())
    message = "\n".join([diagnostic.message, *_advice(diagnostic)])
    return f"::{diagnostic.severity} {properties}::{_escaped(message, _MESSAGE)}"


# What a GitHub workflow command cannot hold as it is; the percent sign comes first, since the others bring new ones
_MESSAGE = {"%": "%25", "\r": "%0D", "\n": "%0A"}
_PROPERTY = {**_MESSAGE, ":": "%3A", ",": "%2C"}


def _escaped(text: str, escapes: Mapping[str, str]) -> str:
    for character, escape in escapes.items():
        text = text.replace(character, escape)
    return text
