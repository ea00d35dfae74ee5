"""`lorakit check`: what can be said about a spec without a model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from lorakit.cli import complete, options
from lorakit.cli.help import command
from lorakit.cli.inputs import analysis_of
from lorakit.cli.terminal import BAD_INPUT, colored, is_quiet, print_data, say

if TYPE_CHECKING:
    from lorakit.language.analysis import Analysis


@command("check")
@click.argument(
    "specs",
    metavar="SPEC",
    nargs=-1,
    required=True,
    shell_complete=complete.specs,
    help="Spec files; `-` reads standard input.",
)
@options.variables
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "github"]),
    default="text",
    help="How to print what is found.",
)
@options.quiet
def check(specs: tuple[str, ...], variables: tuple[str, ...], form: str) -> None:
    """Check specs without a model: syntax, names, plugins and their options, values.

    Exits 0 where there are at most warnings and 2 where a spec is at fault.

    Example: lorakit check qlora.lora --set r=8
    """
    from lorakit.diagnostics import errors_among
    from lorakit.language.render import ON_A_LIST, RENDERERS, render_text
    from lorakit.language.settings import variables_of

    given = variables_of(variables)
    analyses = [analysis_of(spec, given) for spec in specs]
    found = tuple(dict.fromkeys(diagnostic for analysis in analyses for diagnostic in analysis.diagnostics))
    sources = {name: text for analysis in analyses for name, text in analysis.sources.items()}
    errors = errors_among(found)
    if form == "text":
        shown = errors if is_quiet() else found
        _write(render_text(shown, sources, color=colored(sys.stdout), most=ON_A_LIST) if shown else "")
        if found:
            say(f"\n{_counted(len(errors), len(found) - len(errors))}")
    else:
        _write(RENDERERS[form](found))
    if errors:
        raise SystemExit(BAD_INPUT)
    if form == "text":
        for spec, analysis in zip(specs, analyses, strict=True):
            say(f"{spec}: {_count(analysis)}")


def _count(analysis: Analysis) -> str:
    rules = len(analysis.spec.rules) if analysis.spec is not None else 0
    return f"well-formed, {rules} {'rule' if rules == 1 else 'rules'}"


def _counted(errors: int, warnings: int) -> str:
    """Return how many errors and warnings there are, in words."""
    counts = {"error": errors, "warning": warnings}
    return ", ".join(f"{count} {word}{'s' * (count > 1)}" for word, count in counts.items() if count)


def _write(text: str) -> None:
    if text:
        print_data(text)
