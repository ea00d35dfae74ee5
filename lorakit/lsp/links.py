"""Links: the files that `include` brings in, and the model that `# model:` names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lorakit.language.syntax import IncludeNode
from lorakit.lsp.document import Document
from lorakit.lsp.includes import included
from lorakit.lsp.model import model_comment, place_of
from lorakit.values import HUB_ID


@dataclass(frozen=True)
class Link:
    """Words from one offset to another, and the address that they lead to."""

    start: int
    end: int
    target: str


def links(document: Document) -> Iterator[Link]:
    """Yield the links of a document to what there is."""
    for node in document.tree.statements:
        if isinstance(node, IncludeNode) and (file := included(node, document.folder)).is_file():
            yield Link(node.path.start + 1, node.path.end - 1, file.resolve().as_uri())
    comment = model_comment(document.source.text)
    if comment is None:
        return
    path = place_of(comment.reference, document.folder)
    if path is not None and path.is_file():
        yield Link(comment.start, comment.end, path.resolve().as_uri())
    elif HUB_ID.fullmatch(comment.reference) and "/" in comment.reference:
        yield Link(comment.start, comment.end, f"https://huggingface.co/{comment.reference}")
