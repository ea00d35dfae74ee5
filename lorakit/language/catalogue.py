"""The catalogue: the Markdown in the folder `pages`, one page a code and one on all words, for people and editors."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from lorakit.diagnostics import Code

_FORM = re.compile(
    r"# \w+: (?P<title>.+)\n\n(?P<explanation>.+?)\n\n"
    r"Wrong.*?:\n\n```lora\n(?P<wrong>.*?)\n```\n\nRight:\n\n```lora\n(?P<right>.*?)\n```\n",
    re.DOTALL,
)
_CHOICE = re.compile(r"- `(\w+)`: (.+)")


@dataclass(frozen=True)
class Page:
    """The page on one code: what it means, a spec that has the error, and one that has not; `text` is all of it."""

    code: Code
    text: str
    title: str
    explanation: str
    wrong: str
    right: str


@dataclass(frozen=True)
class WordPage:
    """What a word of the language means, how it is written with what belongs to it, and what its choices mean."""

    form: str
    meaning: str
    choices: Mapping[str, str]


def _text(name: str) -> str:
    return (resources.files("lorakit.language") / "pages" / f"{name}.md").read_text("utf-8")


@functools.cache
def word_pages() -> Mapping[str, WordPage]:
    """Return what is said of each word of the language."""
    sections = (section.split("\n\n", 3) for section in _text("words").split("\n## ")[1:])
    return {
        word: WordPage(form.strip("`"), meaning.replace("\n", " ").rstrip(), dict(_CHOICE.findall("".join(choices))))
        for word, form, meaning, *choices in sections
    }


def page_of(code: Code) -> Page:
    """Return the page on a code."""
    text = _text(code)
    parts = _FORM.match(text)
    assert parts is not None, code
    return Page(code, text, **parts.groupdict())


def file_of(code: Code) -> Path | None:
    """Return the file of the page on a code, or None where the package lies in an archive."""
    page = resources.files("lorakit.language") / "pages" / f"{code}.md"
    return page if isinstance(page, Path) else None


@functools.cache
def pages() -> Mapping[str, Page]:
    """Return all pages by code."""
    return {str(code): page_of(code) for code in Code}
