"""What commands have in common: help for a terminal of any width, and a look at what was given before any work."""

from __future__ import annotations

import inspect
import re
import sys
from functools import partial
from typing import Any

import click

from lorakit.cli.given import check_given
from lorakit.encoding import encodable

# below this many columns what an option means stands under its name
NARROW, NAME_WIDTH, SHORT_NAME = 70, 34, 12
# what stands for a hyphen while lines are broken: an option is a word
UNBROKEN = "\u2011"


class _Plain(click.Command):
    """Help in lines that never cut a word."""

    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.help = inspect.cleandoc(self.help or "")

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        needed = (one for one in self.get_params(ctx) if isinstance(one, click.Option) and one.required)
        options = [f"{min(one.opts, key=len)} {one.make_metavar(ctx)}" for one in needed]
        return ["[OPTIONS]", *map(_argument, self._arguments(ctx)), *options]

    def get_help(self, ctx: click.Context) -> str:
        # click itself writes UTF-8 where the encoding is ASCII
        return encodable(super().get_help(ctx).replace(UNBROKEN, "-"), sys.stdout.encoding or "utf-8")

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text((self.help or "").replace("-", UNBROKEN))

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write(formatter, "Arguments", [(_named(one), one.help or "") for one in self._arguments(ctx)])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for one in self.get_params(ctx):
            if isinstance(one, click.Option) and (record := one.get_help_record(ctx)) is not None:
                rows = sections.setdefault(getattr(one, "section", "Options"), [])
                rows.append((_option(record[0]), _meaning(record[1], one.make_metavar(ctx))))
        for title, rows in sections.items():
            _write(formatter, title, rows)

    def invoke(self, ctx: click.Context) -> Any:
        check_given({one.metavar or "": ctx.params.get(one.name) for one in self._arguments(ctx)})
        return super().invoke(ctx)

    def _arguments(self, ctx: click.Context) -> list[click.Argument]:
        return [one for one in self.get_params(ctx) if isinstance(one, click.Argument)]


class Command(_Plain):
    """A command whose help keeps its words whole, and which says at once that its arguments are swapped."""


class Group(_Plain, click.Group):
    """A command with commands of its own."""

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[COMMAND ...]" if self.invoke_without_command else "COMMAND ..."]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        commands = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        _write(formatter, "Commands", [(name, (one.help or "").partition("\n\n")[0]) for name, one in commands if one])


command, group = partial(click.command, cls=Command), partial(click.group, cls=Group)


def _argument(one: click.Argument) -> str:
    """Return how usage shows an argument."""
    return _named(one) if one.required else f"[{_named(one)}]"


def _named(one: click.Argument) -> str:
    name = one.metavar or one.name.upper()
    # several that each have a name need no dots
    return f"{name}..." if one.nargs == -1 and " " not in name else name


def _option(shown: str) -> str:
    """Return an option as click shows it, with choices as bare as every other value."""
    return re.sub(r" \[([^][]+\|[^][]+)\]$", r" \1", shown)


def _meaning(shown: str, value: str) -> str:
    """Return what click says of an option, with bounds on the value as the option shows it; usage says what must be."""
    shown = shown.removesuffix("  [required]")
    return re.sub(r"(?<=[ ;\[<=])x(?=[<>\]])(?=[^\[]*\]$)", value, shown)


def _write(formatter: click.HelpFormatter, title: str, rows: list[tuple[str, str]]) -> None:
    from lorakit.cli.terminal import colored

    if not rows:
        return
    beside = formatter.width >= NARROW or all(len(name) <= SHORT_NAME for name, _ in rows)
    if colored(sys.stdout):
        title = click.style(title, bold=True)
        rows = [(click.style(name, fg="cyan", bold=True), text) for name, text in rows]
    rows = [(name, text.replace("-", UNBROKEN)) for name, text in rows]
    with formatter.section(title):
        formatter.write_dl(rows, col_max=NAME_WIDTH if beside else 4)
