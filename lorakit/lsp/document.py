"""A document: one text as an editor holds it, read once and then looked at from all sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lorakit.hooks import Plugins
from lorakit.language.analysis import Analysis, analyse
from lorakit.language.source import SourceText
from lorakit.language.syntax import SyntaxTree
from lorakit.lsp.positions import Positions


@dataclass(frozen=True)
class Document:
    """A version of a text with everything that was read in it; `path` is None where it was never saved."""

    uri: str
    path: Path | None
    version: int | None
    text: str
    encoding: str
    analysis: Analysis
    plugins: Plugins

    @property
    def tree(self) -> SyntaxTree:
        """The document's own syntax tree; those of included files are in the analysis."""
        return self.analysis.trees[0]

    @property
    def source(self) -> SourceText:
        """The text as the language sees it, without a byte order mark."""
        return self.tree.source

    @property
    def folder(self) -> Path:
        """The folder that includes and models are relative to."""
        return self.path.parent if self.path is not None else Path()

    @cached_property
    def trees(self) -> Mapping[str, SyntaxTree]:
        """The syntax trees of the program's files by name."""
        return {tree.source.name: tree for tree in self.analysis.trees}

    @cached_property
    def positions(self) -> Positions:
        return Positions(self.text, self.encoding)

    def positions_in(self, file: str) -> Positions:
        """Return the positions of a file of the program."""
        if file == self.source.name:
            return self.positions
        if file not in self._positions:
            tree = self.trees.get(file)
            self._positions[file] = Positions(tree.source.text if tree is not None else "", self.encoding)
        return self._positions[file]

    @cached_property
    def _positions(self) -> dict[str, Positions]:
        return {}


def read_document(
    uri: str,
    path: Path | None,
    version: int | None,
    text: str,
    encoding: str,
    plugins: Plugins,
    read: Callable[[Path], bytes],
) -> Document:
    """Return a text with everything that is in it; `read` gives the included files. Raises: PluginError."""
    # as bytes it is never taken for the name of a file; what no encoding holds keeps its place as a question mark
    data = text.encode("utf-8", "replace")
    analysis = analyse(data, plugins=plugins, name=str(path) if path is not None else uri, path=path, read=read)
    return Document(uri, path, version, text, encoding, analysis, plugins)
