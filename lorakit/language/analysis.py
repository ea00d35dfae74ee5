"""One run of the front end: files read, statements checked, every diagnostic gathered."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lorakit.diagnostics import Diagnostic, errors_among
from lorakit.errors import SpecError
from lorakit.language.files import Files, read_file, read_spec
from lorakit.language.place import Place
from lorakit.language.program import build
from lorakit.language.settings import Settings
from lorakit.language.spec import Spec
from lorakit.language.syntax import StatementNode, SyntaxTree, UseNode
from lorakit.language.words import QUANTITIES

if TYPE_CHECKING:
    from lorakit.hooks import Plugins


class Analysis(NamedTuple):
    """What a program means, or what is wrong with it: `spec` is None where there is an error.

    `sound` is what the statements without an error mean; a program's names may be missing in it, and promises too.
    `trees` are the syntax trees of all files that were read, the program's own first; `sources` their texts by name.
    """

    spec: Spec | None
    sound: Spec
    diagnostics: tuple[Diagnostic, ...]
    trees: tuple[SyntaxTree, ...]
    sources: Mapping[str, str]

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        """The diagnostics that leave a program without a Spec: all but the warnings."""
        return errors_among(self.diagnostics)


def analyse(
    text_or_path: str | os.PathLike[str] | bytes,
    variables: Mapping[str, object] | None = None,
    plugins: Plugins | None = None,
    *,
    name: str = "<text>",
    path: Path | None = None,
    quantities: Mapping[str, str] = QUANTITIES,
    read: Callable[[Path], bytes] = read_file,
) -> Analysis:
    """Return what a program means and what is wrong with it; never raises for what is written in it.

    A file is named by any path object, and by a string that ends in `.lora` and has no newline. Bytes are text that is
    yet to be decoded. A text may be given the `name` that diagnostics show, and the `path` that
    its includes are relative to. Without `plugins` those that are installed count.
    Raises: PluginError where a plugin fails on its options.
    """
    data: str | bytes = text_or_path if isinstance(text_or_path, bytes) else str(text_or_path)
    named = isinstance(data, str) and data.endswith(".lora") and "\n" not in data
    if named or not isinstance(text_or_path, str | bytes):
        path, name = Path(str(data)), str(data)
        try:
            data = read_spec(path, read)
        except SpecError as error:
            return Analysis(None, Spec(), error.diagnostics, (), {})
    problems: list[Diagnostic] = []
    files = Files(problems, read)
    statements = tuple(files.statements(name, data, path))
    unread = len(problems)
    for known in (plugins,) if plugins is not None else _more_and_more(statements):
        del problems[unread:]
        settings = Settings(variables or {}, problems)
        spec = build(statements, settings, known, quantities, complete=not files.unreadable)
        if not errors_among(problems[unread:]):
            break
    sources = {tree.source.name: tree.source.text for tree in files.trees} | settings.sources
    order = {file: index for index, file in enumerate(sources)}
    found = tuple(sorted(problems, key=lambda one: (order[one.file], one.line, one.column)))
    sound = replace(spec, source=files.trees[0].source.text, sources=sources)
    return Analysis(None if errors_among(found) else sound, sound, found, tuple(files.trees), sources)


def _more_and_more(statements: Iterable[tuple[Place, StatementNode]]) -> Iterator[Plugins]:
    """Yield what most programs name, and then all that is installed, which takes its time to load."""
    from lorakit.plugins import default_plugins, vocabulary

    if not any(isinstance(node, UseNode) for _, node in statements):
        yield vocabulary()
    yield default_plugins()
