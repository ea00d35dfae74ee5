"""Texts to try readers of the language on: the examples, the catalogue's pages, and what its tests are written with."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from lorakit.language.catalogue import pages
from lorakit.language.parser import parse_syntax
from lorakit.language.source import SourceText

ROOT = Path(__file__).parents[1]

_LONG = re.compile(r'"""(.*?)"""', re.DOTALL)
_SHORT = re.compile(r'"((?:adapt|quantize|train|optimizer|step|require|let|include|use)\b(?:\\.|[^"\\\n{}])*)"')


def examples() -> list[str]:
    """Return the specs in `examples/`."""
    return [path.read_text("utf-8") for path in sorted((ROOT / "examples").rglob("*.lora"))]


@functools.cache
def texts() -> tuple[str, ...]:
    """Return everything that looks like a spec, right or wrong, each once."""
    found = [*examples(), *(path.read_text("utf-8") for path in (ROOT / "tests" / "language" / "found").iterdir())]
    for page in pages().values():
        found += [page.right, page.wrong]
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        source = path.read_text("utf-8")
        found += _LONG.findall(source)
        found += [text.replace("\\n", "\n").replace('\\"', '"') for text in _SHORT.findall(source)]
    return tuple(dict.fromkeys(found))


def is_right(text: str) -> bool:
    """Return whether the parser takes a text."""
    return not parse_syntax(SourceText("spec", text)).diagnostics


@functools.cache
def right() -> tuple[str, ...]:
    """Return those that the parser takes."""
    return tuple(filter(is_right, texts()))
