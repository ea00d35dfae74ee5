"""Includes: which files a program is made of, and how they come into it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lorakit.language.calls import unquoted
from lorakit.language.syntax import IncludeNode, StatementNode, SyntaxTree
from lorakit.lsp.document import Document


def included(node: IncludeNode, folder: Path) -> Path:
    """Return the file that a statement includes, in a file of this folder."""
    return folder / unquoted(node.path)


def statements_of(document: Document, above: int | None = None) -> Iterator[tuple[SyntaxTree, StatementNode]]:
    """Yield the statements of a program in order, each with its file; only those above an offset where one is given."""
    trees = dict(document.trees)

    def inside(tree: SyntaxTree, folder: Path) -> Iterator[tuple[SyntaxTree, StatementNode]]:
        for statement in tree.statements:
            if tree is document.tree and above is not None and statement.start >= above:
                return
            if not isinstance(statement, IncludeNode):
                yield tree, statement
                continue
            path = included(statement, folder)
            # a file that is included twice counts once
            if (inner := trees.pop(str(path), None)) is not None:
                yield from inside(inner, path.parent)

    yield from inside(trees.pop(document.source.name), document.folder)


def include_of(file: str, document: Document) -> IncludeNode | None:
    """Return the statement of a document that brings in a file, over other files perhaps."""
    trees = dict(document.trees)

    def brings(node: IncludeNode, folder: Path) -> bool:
        path = included(node, folder)
        tree = trees.pop(str(path), None)
        return str(path) == file or (
            tree is not None and any(brings(inner, path.parent) for inner in _includes(tree))
        )  # fmt: skip

    return next((node for node in _includes(trees.pop(document.source.name)) if brings(node, document.folder)), None)


def _includes(tree: SyntaxTree) -> Iterator[IncludeNode]:
    return (node for node in tree.statements if isinstance(node, IncludeNode))
