"""Assemble the pages of the documentation site from what the repository says already.

A page in `pages/` holds its own words and lines such as `{{README.md#Data}}`, which stand for a section of a Markdown
file; without a `#` for all of it, and for a spec for the spec as a block of code. `{{codes}}` is the table of errors.
Pages that are whole files of the repository are listed in `WHOLE`.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ERRORS = ROOT / "lorakit" / "language" / "pages"
README = "README.md"
# what stands before the first section of a file
BEGINNING = ""

_INCLUDE = re.compile(r"^\{\{(?P<file>[\w./-]+)(?:#(?P<section>.*))?\}\}$", re.M)
_FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
_SECTION = re.compile(r"^## (.+)$", re.M)
_LINK = re.compile(r"\]\(#([\w-]+)\)")


class SiteError(Exception):
    """A page that cannot be assembled."""


def whole_pages() -> Mapping[str, Path]:
    """Return the pages that are files of the repository as they are, by their place on the site."""
    return {
        **{f"plugins/hooks/{path.name}": path for path in sorted((ROOT / "plugins" / "hooks").glob("*.md"))},
        **{f"plugins/{path.parent.name}.md": path for path in sorted(ROOT.glob("plugins/lorakit-*/README.md"))},
        **{f"errors/{path.name}": path for path in sorted(ERRORS.glob("L*.md"))},
        "plugins/index.md": ROOT / "plugins" / README,
        "editors.md": ROOT / "grammar" / README,
        "figures.md": ROOT / "benchmarks" / README,
        "contributing.md": ROOT / ".github" / "CONTRIBUTING.md",
        "changes.md": ROOT / ".github" / "CHANGELOG.md",
    }


def sections(text: str) -> Mapping[str, str]:
    """Return the sections of a Markdown file by their titles, and what stands before them under an empty one."""
    masked = _FENCE.sub(lambda block: re.sub(r"[^\n]", " ", block[0]), text)
    starts = [(BEGINNING, 0), *((found[1], found.start()) for found in _SECTION.finditer(masked))]
    ends = [start for _, start in starts[1:]] + [len(text)]
    return {title: text[start:end].strip() for (title, start), end in zip(starts, ends, strict=True)}


def slug(title: str) -> str:
    """Return the anchor that a title gets."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower())).strip("-")


def demoted(text: str) -> str:
    """Return Markdown with every heading a level lower."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)
    return "".join(part if part.startswith("```") else re.sub(r"^(#+ )", r"#\1", part, flags=re.M) for part in parts)


def codes() -> str:
    """Return the table of the errors of a spec, each with a link to its page."""
    rows = []
    for path in sorted(ERRORS.glob("L*.md")):
        code, _, title = path.read_text("utf-8").partition("\n")[0].removeprefix("# ").partition(": ")
        rows.append(f"| [{code}]({path.name}) | {title} |")
    return "\n".join(["| code | what is wrong |", "|---|---|", *rows])


def included(name: str, section: str | None) -> str:
    """Return what a line of includes stands for. Raises: SiteError."""
    if name == "codes":
        return codes()
    path = ROOT / name
    if not path.is_file():
        raise SiteError(f"there is no {name}")
    text = path.read_text("utf-8")
    if path.suffix == ".lora":
        return f"```lora\n{text.strip()}\n```"
    if section is None:
        return demoted(text.strip())
    parts = sections(text)
    if section not in parts:
        raise SiteError(f"{name} has no section {section!r}; it has {', '.join(filter(None, parts))}")
    return parts[section]


def links(text: str, page: str, places: Mapping[str, str]) -> str:
    """Return a page whose links to sections of the README lead to the pages that these are on."""

    def lead(found: re.Match[str]) -> str:
        place = places.get(found[1], page)
        return found[0] if place == page else f"]({'../' * page.count('/')}{place}#{found[1]})"

    return _LINK.sub(lead, text).replace("](../../README.md)", "](../index.md)")


def pages() -> Iterator[tuple[str, str]]:
    """Yield every page of the site by its place. Raises: SiteError, also for a section that no page takes."""
    own = {path.relative_to(HERE / "pages").as_posix(): path.read_text("utf-8") for path in HERE.glob("pages/**/*.md")}
    places = {
        slug(found["section"]): page
        for page, text in own.items()
        for found in _INCLUDE.finditer(text)
        if found["file"] == README and found["section"]
    }
    readme = sections((ROOT / README).read_text("utf-8"))
    if lost := [title for title in readme if title and slug(title) not in places]:
        raise SiteError(f"no page of examples/site/pages takes from README.md: {', '.join(lost)}")
    for page, text in own.items():
        try:
            yield page, links(_INCLUDE.sub(lambda found: included(found["file"], found["section"]), text), page, places)
        except SiteError as error:
            raise SiteError(f"examples/site/pages/{page}: {error}") from error
    for page, path in whole_pages().items():
        yield page, links(path.read_text("utf-8"), page, {})


def assemble(folder: Path) -> None:
    """Write the pages and the settings of the site into a folder, in the place of those that it may hold."""
    shutil.rmtree(folder / "pages", ignore_errors=True)
    for page, text in pages():
        path = folder / "pages" / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    shutil.copy(HERE / "zensical.toml", folder)


if __name__ == "__main__":
    try:
        assemble(Path(sys.argv[1]))
    except SiteError as error:
        sys.exit(f"error: {error}")
