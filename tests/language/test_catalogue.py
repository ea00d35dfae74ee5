"""Every code has a page; the wrong example of each raises just that code, and the right one none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from language_helpers import plugins

from lorakit.language.analysis import analyse
from lorakit.language.catalogue import PAGES, page_text
from lorakit.language.codes import Code
from lorakit.language.pages import Page

ROOT = Path(__file__).parents[2]


def found(page: Page, folder: Path, text: str, encoding: str, settings: object) -> list[str]:
    """Return the codes of an example, saved in a folder beside the files that it includes."""
    for name, content in page.files.items():
        (folder / name).write_text(content, encoding="utf-8")
    path = folder / "example.lora"
    path.write_bytes(text.encode(encoding))
    return [one.code for one in analyse(path, settings, plugins()).diagnostics]  # type: ignore[arg-type]


def test_every_code_has_a_page() -> None:
    assert list(PAGES) == [str(code) for code in Code]
    assert all(re.fullmatch(r"L\d{3}", code) for code in PAGES)


@pytest.mark.parametrize("page", PAGES.values(), ids=lambda page: str(page.code))
def test_the_wrong_example_raises_just_its_code_and_the_right_one_none(page: Page, tmp_path: Path) -> None:
    expected = [str(page.code)] if page.kind == "language" else []
    assert found(page, tmp_path, page.wrong, page.encoding, page.settings) == expected
    assert found(page, tmp_path, page.right, "utf-8", {}) == []
    assert page.wrong != page.right or page.settings or page.encoding != "utf-8"


@pytest.mark.parametrize("page", PAGES.values(), ids=lambda page: str(page.code))
def test_pages_read_well(page: Page) -> None:
    text = page_text(page)
    assert text.startswith(f"# {page.code}: {page.title}\n\n{page.explanation}\n\nWrong")
    assert page.explanation.endswith(".") and not page.title.endswith(".")
    assert f"\n    {page.right.splitlines()[-1]}\n" in text


def test_codes_are_raised_by_name() -> None:
    for path in (ROOT / "lorakit" / "language").glob("*.py"):
        if path.name != "codes.py":
            assert not re.search(r"\"L\d{3}\"", path.read_text("utf-8")), path
