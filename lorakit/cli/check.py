"""`lorakit check`: what can be said about a spec without a model."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from lorakit.cli import complete, options
from lorakit.cli.inputs import analysis_of
from lorakit.cli.terminal import colored

if TYPE_CHECKING:
    from lorakit.language.analysis import Analysis


class Form(StrEnum):
    """How diagnostics are printed."""

    text = "text"
    json = "json"
    github = "github"


def check(
    specs: Annotated[
        list[str],
        typer.Argument(metavar="SPEC", autocompletion=complete.specs, help="Spec files; `-` reads standard input."),
    ],
    set_: options.Set = [],  # noqa: B006
    format_: Annotated[Form, typer.Option("--format", help="How to print what is found.")] = Form.text,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing of specs without errors.")] = False,
) -> None:
    """Check specs without a model: syntax, names, plugins and their options, values.

    Exits 0 where there are at most warnings and 2 where a spec is at fault.

    Example: lorakit check qlora.lora --set r=8
    """
    from lorakit.diagnostics import errors_among
    from lorakit.language.render import ON_A_LIST, RENDERERS, render_text
    from lorakit.language.settings import variables_of

    variables = variables_of(set_)
    analyses = [analysis_of(spec, variables) for spec in specs]
    found = tuple(dict.fromkeys(diagnostic for analysis in analyses for diagnostic in analysis.diagnostics))
    sources = {name: text for analysis in analyses for name, text in analysis.sources.items()}
    if format_ is Form.text:
        shown = render_text(found, sources, color=colored(sys.stdout), most=ON_A_LIST) if found else ""
    else:
        shown = RENDERERS[format_.value](found)
    _write(shown)
    errors = len(errors_among(found))
    if found and format_ is Form.text:
        _write(f"\n{_counted(errors, len(found) - errors)}")
    if errors:
        raise typer.Exit(2)
    if format_ is Form.text and not quiet:
        _write("\n".join(f"{spec}: {_count(analysis)}" for spec, analysis in zip(specs, analyses, strict=True)))


def _count(analysis: Analysis) -> str:
    rules = len(analysis.spec.rules) if analysis.spec is not None else 0
    return f"well-formed, {rules} {'rule' if rules == 1 else 'rules'}"


def _counted(errors: int, warnings: int) -> str:
    """Return how many errors and warnings there are, in words."""
    counts = {"error": errors, "warning": warnings}
    return ", ".join(f"{count} {word}{'s' * (count > 1)}" for word, count in counts.items() if count)


def _write(text: str) -> None:
    if text:
        sys.stdout.write(f"{text}\n")
