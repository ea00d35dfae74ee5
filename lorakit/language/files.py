"""Files: reading a spec, and putting included files in the place of their `include`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorakit.diagnostics import HELP, Code, Diagnostic, Span, diagnostic_at
from lorakit.errors import SpecError
from lorakit.language.calls import unquoted
from lorakit.language.other_formats import OtherFormat, other_format
from lorakit.language.parser import parse_syntax
from lorakit.language.place import Extent, Place
from lorakit.language.render import render_text
from lorakit.language.source import MAX_SIZE, Damage, SourceText, decode
from lorakit.language.suggestions import nearest
from lorakit.language.syntax import IncludeNode, StatementNode, SyntaxTree

MAX_INCLUDE_DEPTH = 64


@dataclass
class Files:
    """The files of one run. `read` gives a file's bytes; an editor gives what is not saved yet."""

    problems: list[Diagnostic]
    read: Callable[[Path], bytes]
    trees: list[SyntaxTree] = field(default_factory=list)
    unreadable: bool = False
    _done: set[Path] = field(default_factory=set)

    def statements(self, name: str, data: bytes | str, path: Path | None) -> Iterator[tuple[Place, StatementNode]]:
        """Yield the statements of a program in order, each with its file; includes give way to what they include."""
        folder = path.parent if path is not None else Path()
        return self._expand(name, data, folder, (_identity(path),) if path is not None else (), ())

    def _expand(
        self, name: str, data: bytes | str, folder: Path, chain: tuple[Path, ...], notes: tuple[str, ...]
    ) -> Iterator[tuple[Place, StatementNode]]:
        text, damage = decode(data)
        place = Place(SourceText(name, text), self.problems, notes)
        if (other := other_format(text)) is not None:
            self.unreadable = True
            self.trees.append(SyntaxTree(place.source, (), (), ()))
            report_format(place, other)
            return
        tree = parse_syntax(place.source)
        self.trees.append(tree)
        if damage is not None:
            self.unreadable = True
            report_damage(place, damage)
        for found in tree.diagnostics:
            if damage is None or not text.startswith("\ufffd", place.source.offset(found.line, found.column)):
                self.problems.append(replace(found, notes=(*found.notes, *notes)))
        for statement in tree.statements:
            if isinstance(statement, IncludeNode):
                yield from self._include(statement, place, folder, chain)
            else:
                yield place, statement

    def _include(
        self, node: IncludeNode, place: Place, folder: Path, chain: tuple[Path, ...]
    ) -> Iterator[tuple[Place, StatementNode]]:
        path = folder / unquoted(node.path)
        try:
            identity = _identity(path)
            if identity in chain:
                names = " → ".join(path.name for path in (*chain[chain.index(identity) :], identity))
                place.report(Code.INCLUDE_CYCLE, f"this file includes itself: {names}", node.path)
                return
            if identity in self._done:
                return
            if len(chain) >= MAX_INCLUDE_DEPTH:
                self.unreadable = True
                place.report(Code.INCLUDE_DEPTH, f"includes go deeper than {MAX_INCLUDE_DEPTH} files", node.path)
                return
            self._done.add(identity)
            if path.exists() and not path.is_file() and not path.is_dir():
                raise OSError("it is no regular file")
            data = self.read(path)
        except (OSError, ValueError) as error:
            self.unreadable = True
            near = _neighbour(path)
            message = f"cannot read `{path}`: {reason(error)}"
            place.report(Code.UNREADABLE, message, node.path, f'"{near}"' if near else None)
            return
        notes = (f"included at {place.span(node.path)}", *place.chain)
        yield from self._expand(str(path), data, path.parent, (*chain, identity), notes)


def _identity(path: Path) -> Path:
    """Return where a path really lies; of links that lead in a circle, as they are written."""
    return Path(os.path.realpath(path))


def read_file(path: Path) -> bytes:
    """Return the bytes of a file, of one that is too large a few too many. Raises: OSError, ValueError."""
    with path.open("rb") as file:
        return file.read(MAX_SIZE + 1)


def read_spec(path: Path, read: Callable[[Path], bytes] = read_file) -> bytes:
    """Return the bytes of a spec. Raises: SpecError where it cannot be read."""
    try:
        return read(path)
    except (OSError, ValueError) as error:
        found = diagnostic_at(Code.UNREADABLE, f"cannot read `{path}`: {reason(error)}", Span(str(path), 1, 1, 1, 1))
        raise SpecError((found,), render_text((found,), {})) from error


def decoded(data: bytes | str, name: str) -> str:
    """Return the text of a spec. Raises: SpecError where it is not UTF-8 or too large."""
    text, damage = decode(data)
    place = Place(SourceText(name, text))
    if damage is not None:
        report_damage(place, damage)
    elif (other := other_format(text)) is not None:
        report_format(place, other)
    if place.problems:
        raise SpecError(tuple(place.problems), render_text(place.problems, {name: text}))
    return text


def report_damage(place: Place, damage: Damage) -> None:
    """Report from where on a text cannot be read."""
    end = damage.offset + (1 if damage.offset < len(place.source.text) else 0)
    place.report(damage.code, damage.message, Extent(damage.offset, end), None, f"{HELP}{damage.help}")


def report_format(place: Place, other: OtherFormat) -> None:
    """Report that a text is no spec, but a file of another tool."""
    name = place.source.name
    file = shlex.quote(name) if not name.startswith("<") else "FILE"
    converts = f"`lorakit init --from {file}` writes the spec that means the same"
    note = HELP + (converts if other.is_read else "a spec is lines as `adapt q_proj,v_proj rank 16`")
    place.report(Code.OTHER_FORMAT, f"this is {other.kind}, and no spec", Extent(other.start, other.end), None, note)


def reason(error: Exception) -> str:
    """Return why a file could not be read, in words."""
    return (getattr(error, "strerror", None) or str(error)).lower()


def _neighbour(path: Path) -> str | None:
    """Return the name of a spec in the same folder that was probably meant."""
    try:
        names = [file.name for file in path.parent.glob("*.lora")]
    except (OSError, ValueError):
        return None
    return nearest(path.name, names)
