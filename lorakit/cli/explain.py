"""`lorakit explain`: the page on one error, with an example of it and of how it should be, or what a word says."""

from __future__ import annotations

import sys

import click

from lorakit.cli import complete
from lorakit.cli.help import command


@command("explain")
@click.argument(
    "code",
    metavar="CODE",
    required=False,
    shell_complete=complete.codes,
    help="A code such as L042, or a word of the language such as quantize; without one, all codes are listed.",
)
def explain(code: str | None) -> None:
    """Explain an error by its code, or a word of the language.

    Example: lorakit explain L042
    """
    from lorakit.diagnostics import Code
    from lorakit.language.catalogue import page_of, pages
    from lorakit.language.words import KEYWORDS

    if not code:
        sys.stdout.write("".join(f"{page.code}  {page.title}\n" for page in pages().values()))
        return
    try:
        text = _word(code) if code in KEYWORDS else page_of(Code(code.upper())).text
    except ValueError:
        from lorakit.language.suggestions import nearest

        near = nearest(code.upper(), Code) or nearest(code, KEYWORDS)
        hint = f"did you mean {near}?" if near else "`lorakit explain` lists all codes"
        sys.stderr.write(f"error: there is no code `{code}`; {hint}\n")
        raise SystemExit(2) from None
    from lorakit.cli.terminal import colored, console

    if not colored(sys.stdout):
        sys.stdout.write(text)
        return
    from rich.markdown import Markdown

    console().print(Markdown(text))


def _word(word: str) -> str:
    """Return what a word of the language says, as Markdown in lines of a page."""
    import textwrap

    from lorakit.language.catalogue import word_pages
    from lorakit.language.words import KEYWORDS, STATEMENTS

    page, statements = word_pages()[word], KEYWORDS[word].statements
    parts = [f"# `{page.form}`", textwrap.fill(page.meaning, 100)]
    parts += ["\n".join(f"- `{choice}`: {meaning}" for choice, meaning in page.choices.items())]
    if statements:
        parts.append(f"A clause of {', '.join(f'`{statement}`' for statement in statements)}.")
    elif word in STATEMENTS:
        parts.append("A statement.")
    return "\n\n".join(filter(None, parts)) + "\n"
