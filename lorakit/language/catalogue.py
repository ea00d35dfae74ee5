"""The catalogue: one page a code, for `lorakit explain` and for the documentation."""

from __future__ import annotations

from collections.abc import Mapping

from lorakit.language.pages import Page
from lorakit.language.pages_names import NAMES
from lorakit.language.pages_plan import PLAN
from lorakit.language.pages_syntax import SYNTAX
from lorakit.language.pages_values import VALUES

PAGES: Mapping[str, Page] = {str(page.code): page for page in (*SYNTAX, *NAMES, *VALUES, *PLAN)}


def page_text(page: Page) -> str:
    """Return a page as Markdown."""
    settings = "".join(f" --set {name}={value}" for name, value in page.settings.items())
    command = f"\n\nwith `lorakit check{settings}`" if settings else ""
    encoding = f"\n\nsaved as {page.encoding}" if page.encoding != "utf-8" else ""
    return (
        f"# {page.code}: {page.title}\n\n{page.explanation}\n\n"
        f"Wrong{command}{encoding}:\n\n{_example(page.wrong)}\n\nRight:\n\n{_example(page.right)}\n"
    )


def _example(spec: str) -> str:
    return "\n".join(f"    {line}" for line in spec.split("\n"))
