"""Every code has a page; the wrong example of each raises just that code, and the right one none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from language_helpers import plugins

from lorakit.diagnostics import Code
from lorakit.language.analysis import analyse
from lorakit.language.catalogue import Page, pages

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "lorakit" / "language" / "pages"
# what the page on includes that go too deep does not write out
CHAIN = {f"{n}.lora": f'include "{n + 1}.lora"' for n in range(1, 70)} | {"70.lora": "train @norm"}

each_page = pytest.mark.parametrize("page", pages().values(), ids=lambda page: str(page.code))


def found(page: Page, folder: Path, text: str, encoding: str = "utf-8", **settings: str) -> list[str]:
    """Return the codes of an example, saved in a folder beside the files that it includes."""
    included = dict(re.findall(r"\n`([\w.]+)`:\n\n```lora\n(.*?)\n```", page.text, re.DOTALL))
    for name, content in (CHAIN if page.code is Code.INCLUDE_DEPTH else included).items():
        (folder / name).write_text(content, encoding="utf-8")
    path = folder / "example.lora"
    path.write_bytes(text.encode(encoding))
    return [one.code for one in analyse(path, settings, plugins()).diagnostics]


def test_every_code_has_a_page() -> None:
    assert {path.stem for path in PAGES.iterdir()} == {*Code, "words"}
    assert list(pages()) == sorted(Code) and all(re.fullmatch(r"L\d{3}", code) for code in pages())


@each_page
def test_the_wrong_example_raises_just_its_code_and_the_right_one_none(page: Page, tmp_path: Path) -> None:
    settings = dict(re.findall(r"--set (\w)=(\w+)`:\n", page.text))
    encoding = re.search(r"saved as ([\w-]+):\n", page.text)
    # codes from L100 on come out where a spec meets a model: their examples say which in a comment
    expected = [str(page.code)] if page.code < "L100" else []
    wrong = f"{page.wrong}\n" * 100_000 if page.code is Code.TOO_LARGE else page.wrong
    assert found(page, tmp_path, wrong, encoding[1] if encoding else "utf-8", **settings) == expected
    assert found(page, tmp_path, page.right) == []
    assert wrong != page.right or settings or encoding


@each_page
def test_pages_read_well(page: Page) -> None:
    assert page.text.startswith(f"# {page.code}: {page.title}\n\n{page.explanation}\n\nWrong")
    assert page.explanation.endswith(".") and not page.title.endswith(".")
    assert all(len(line) <= 100 for line in page.text.split("\n"))


def test_codes_are_raised_by_name() -> None:
    for path in (ROOT / "lorakit").rglob("*.py"):
        if path.name != "diagnostics.py":
            assert not re.search(r"\"L\d{3}\"", path.read_text("utf-8")), path
