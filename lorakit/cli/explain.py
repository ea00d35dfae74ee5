"""`lorakit explain`: the page on one error, with an example of it and of how it should be."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def explain(
    code: Annotated[
        str, typer.Argument(metavar="[CODE]", help="A code such as L042; without one, all are listed.")
    ] = "",
) -> None:
    """Explain an error by its code.

    Example: lorakit explain L042
    """
    from lorakit.diagnostics import Code
    from lorakit.language.catalogue import page_of, pages

    if not code:
        sys.stdout.write("".join(f"{page.code}  {page.title}\n" for page in pages().values()))
        return
    try:
        text = page_of(Code(code.upper())).text
    except ValueError:
        from lorakit.language.suggestions import nearest

        near = nearest(code.upper(), Code)
        hint = f"did you mean {near}?" if near else "`lorakit explain` lists all codes"
        sys.stderr.write(f"error: there is no code `{code}`; {hint}\n")
        raise typer.Exit(2) from None
    if not sys.stdout.isatty():
        sys.stdout.write(text)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text))
