"""Diagnostics: the record of one finding in a spec."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lorakit.language.spec import Span

HELP = "help: "


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding in a spec; lines and columns are 1-based and in code points, the end is exclusive.

    `suggestion` says what to do about it; `notes` are sentences, and those that help begin with `help: `.
    """

    code: str
    severity: str
    message: str
    file: str
    line: int
    column: int
    end_line: int
    end_column: int
    suggestion: str | None = None
    notes: tuple[str, ...] = ()


def at(
    code: str,
    message: str,
    span: Span | None,
    *,
    suggestion: str | None = None,
    notes: Sequence[str] = (),
    severity: str = "error",
) -> Diagnostic:
    """Return a diagnostic at a span; without one, as in a Spec that no text was read for, at no place in particular."""
    span = span or Span("<spec>", 1, 1, 1, 1)
    return Diagnostic(
        str(code),
        severity,
        message,
        span.file,
        span.line,
        span.column,
        span.end_line,
        span.end_column,
        suggestion,
        tuple(notes),
    )


def advised(near: str | None, notes: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """Return the suggestion and the notes of a diagnostic, given the word that was probably meant.

    Where there is no such word, the first note of help is the suggestion.
    """
    if near is not None:
        return f"did you mean `{near}`?", tuple(notes)
    help_ = next((note for note in notes if note.startswith(HELP)), None)
    return (help_.removeprefix(HELP) if help_ else None), tuple(note for note in notes if note is not help_)


def render(diagnostics: Iterable[Diagnostic], sources: Mapping[str, str], color: bool = False) -> str:
    """Return diagnostics as text, each with its source line and carets under its words; `sources` are texts by name."""
    from lorakit.language.render import render_text

    return render_text(diagnostics, sources, color)
