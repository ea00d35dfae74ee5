"""The catalogue: one page a code, a Markdown file in the folder `pages`, for `lorakit explain` and for editors."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from lorakit.diagnostics import Code

_FORM = re.compile(
    r"# \w+: (?P<title>.+)\n\n(?P<explanation>.+?)\n\n"
    r"Wrong.*?:\n\n```lora\n(?P<wrong>.*?)\n```\n\nRight:\n\n```lora\n(?P<right>.*?)\n```\n",
    re.DOTALL,
)


@dataclass(frozen=True)
class Page:
    """The page on one code: what it means, a spec that has the error, and one that has not; `text` is all of it."""

    code: Code
    text: str
    title: str
    explanation: str
    wrong: str
    right: str


def page_of(code: Code) -> Page:
    """Return the page on a code."""
    text = (resources.files("lorakit.language") / "pages" / f"{code}.md").read_text("utf-8")
    parts = _FORM.match(text)
    assert parts is not None, code
    return Page(code, text, **parts.groupdict())


@functools.cache
def pages() -> Mapping[str, Page]:
    """Return all pages by code."""
    return {str(code): page_of(code) for code in Code}
