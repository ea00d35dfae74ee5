"""Diagnostics as the protocol has them; what is wrong in an included file shows at its `include`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from lsprotocol import types

from lorakit.diagnostics import HELP, Code, Diagnostic
from lorakit.language.catalogue import file_of
from lorakit.lsp.document import Document
from lorakit.lsp.includes import include_of
from lorakit.lsp.model import Unreadable, model_comment

SOURCE = "lorakit"
NOWHERE = types.Range(types.Position(0, 0), types.Position(0, 0))

_PLACE = re.compile(r"(?P<what>.+) at (?P<file>.+):(?P<line>[0-9]+):(?P<column>[0-9]+)")
_SEVERITIES = {"error": types.DiagnosticSeverity.Error, "warning": types.DiagnosticSeverity.Warning}


def published(found: Iterable[Diagnostic], document: Document) -> list[types.Diagnostic]:
    """Return what was found as the protocol has it, in the order in which it was found."""
    return [_converted(one, document) for one in found]


def model_problem(unreadable: Unreadable, document: Document) -> list[types.Diagnostic]:
    """Return why a model cannot be read, at the comment that names it."""
    comment = model_comment(document.source.text)
    if comment is None:
        return []
    place = document.positions.range(comment.start, comment.end)
    help_ = f"\n{HELP}did you mean `{unreadable.near}`?" if unreadable.near is not None else ""
    return [problem(place, unreadable.problem + help_, types.DiagnosticSeverity.Warning)]


def problem(
    place: types.Range, message: str, severity: types.DiagnosticSeverity = types.DiagnosticSeverity.Error
) -> types.Diagnostic:
    """Return a diagnostic that is no record of the language's."""
    return types.Diagnostic(place, message, severity, source=SOURCE)


def location(file: str, line: int, column: int, document: Document) -> types.Location:
    """Return the location of a 1-based line and column in a file of the program."""
    tree = document.trees.get(file)
    if tree is None:
        return types.Location(uri_of(file, document), NOWHERE)
    offset = tree.source.offset(line, column)
    return types.Location(uri_of(file, document), document.positions_in(file).range(offset, offset))


def uri_of(file: str, document: Document) -> str:
    """Return the address of a file of the program."""
    return document.uri if file == document.source.name else Path(os.path.normpath(Path(file).absolute())).as_uri()


def _converted(found: Diagnostic, document: Document) -> types.Diagnostic:
    inside = found.file == document.source.name
    help_ = [f"{HELP}{found.suggestion}"] if found.suggestion is not None else []
    places = [match for note in found.notes if (match := _PLACE.fullmatch(note)) is not None]
    related = [] if inside else [(found.message, found.file, found.line, found.column)]
    related += [(f"{match['what']} here", match["file"], int(match["line"]), int(match["column"])) for match in places]
    return types.Diagnostic(
        range=_range(found, document) if inside else _include(found.file, document),
        message="\n".join([found.message if inside else f"{found.file}: {found.message}", *help_, *found.notes]),
        severity=_SEVERITIES[found.severity],
        code=found.code,
        code_description=_description(found.code),
        tags=[types.DiagnosticTag.Unnecessary] if found.code == Code.UNUSED_NAME else None,
        source=SOURCE,
        related_information=[
            types.DiagnosticRelatedInformation(location(file, line, column, document), what)
            for what, file, line, column in related
        ],
    )


def _description(code: str) -> types.CodeDescription | None:
    """Return where a code is explained: the page in the installed package, which needs no network and fits it."""
    path = file_of(Code(code))
    return types.CodeDescription(path.as_uri()) if path is not None else None


def _range(found: Diagnostic, document: Document) -> types.Range:
    source = document.source
    return document.positions.range(
        source.offset(found.line, found.column), source.offset(found.end_line, found.end_column)
    )  # fmt: skip


def _include(file: str, document: Document) -> types.Range:
    """Return the range of the path that brings in a file."""
    node = include_of(file, document)
    return document.positions.range(node.path.start, node.path.end) if node is not None else NOWHERE


def kept(findings: Iterable[Diagnostic], before: Document, now: Document) -> Iterator[Diagnostic]:
    """Yield what was found with a model before and stands on lines that are as they were."""
    for found in findings:
        then, after = before.trees.get(found.file), now.trees.get(found.file)
        if then is not None and after is not None and then.source.line(found.line) == after.source.line(found.line):
            yield found
