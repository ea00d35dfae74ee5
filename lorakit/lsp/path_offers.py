"""Offers of files and models: inside `include "` and `# model:`, where the grammar sees a string or a comment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from lsprotocol.types import CompletionItemKind

from lorakit.lsp.document import Document
from lorakit.lsp.model_names import cached_ids, model_names, walk
from lorakit.lsp.offers import Offer
from lorakit.values import HUB_ID

_MODEL = re.compile(r"^[ \t]*#[ \t]*model:[ \t]*(?P<begun>\S*)$")
_INCLUDE = re.compile(r'(?:^|;)[ \t]*include[ \t]*"(?P<begun>[^"\\\n]*)$')


def path_offers(document: Document, offset: int) -> list[Offer] | None:
    """Return what can be named at an offset; None where no file and no model is asked for."""
    text = document.source.text
    line = text[text.rfind("\n", 0, offset) + 1 : offset]
    if (model := _MODEL.search(line)) is not None:
        return list(_models(document, model["begun"], offset))
    if (include := _INCLUDE.search(line)) is not None:
        return list(_files(document, include["begun"], offset))
    return None


def _models(document: Document, begun: str, offset: int) -> Iterator[Offer]:
    start, ids = offset - len(begun), set(cached_ids())
    head = begun[: begun.rfind("/") + 1]
    folder = document.folder / head if head.startswith(("/", "../", "./")) else document.folder
    shown = head if folder != document.folder else ""
    for name in model_names(folder):
        if name in ids and HUB_ID.fullmatch(name):
            yield Offer(name, start, CompletionItemKind.Module, "in the Hugging Face cache", order=1)
        else:
            kind = CompletionItemKind.Function if ":" in name else CompletionItemKind.Folder
            yield Offer(shown + name, start, kind, "factory" if ":" in name else "model folder")


def _files(document: Document, begun: str, offset: int) -> Iterator[Offer]:
    head = begun[: begun.rfind("/") + 1]
    folder = document.folder / head if head.startswith(("/", "../", "./")) else document.folder
    shown = head if folder != document.folder else ""
    for path in walk(folder):
        name = shown + path.relative_to(folder).as_posix()
        if path.suffix == ".lora" and not _same(path, document.path) and '"' not in name and "\\" not in name:
            yield Offer(name, offset - len(begun), CompletionItemKind.File)


def _same(path: Path, other: Path | None) -> bool:
    return other is not None and os.path.realpath(path) == os.path.realpath(other)
