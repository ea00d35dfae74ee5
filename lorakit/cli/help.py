"""What commands have in common: help for a terminal of any width, and a look at what was given before any work."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from lorakit.cli.given import check_given

# below this many columns what an option means stands under its name
NARROW, NAME_WIDTH, SHORT_NAME = 70, 34, 12
# what stands for a hyphen while lines are broken: an option is a word
UNBROKEN = "\u2011"
# how the value of an option without a name of its own is shown, by what typer says of it
VALUES = {
    r"<(int|integer)( range)?>|INTEGER( RANGE)?": "N",
    r"<float( range)?>|FLOAT( RANGE)?": "X",
    r"<(str|text)>|TEXT": "TEXT",
    r"[<\[]([\w-]+(\|[\w-]+)+)[>\]]": r"\1",
}


def help_of(command: Callable[..., Any]) -> str:
    """Return a docstring with the lines of each paragraph joined, as each terminal breaks them anew."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.getdoc(command) or "")


class _Plain:
    """Help in lines that never cut a word, the same in every release of typer."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [_argument(one) for one in self.get_params(ctx) if one.param_type_name == "argument"]  # type: ignore[attr-defined]
        return ["[OPTIONS]", *arguments, *(["COMMAND ..."] if isinstance(self, TyperGroup) else [])]

    def get_help(self, ctx: Any) -> str:
        return super().get_help(ctx).replace(UNBROKEN, "-")  # type: ignore[misc,no-any-return]

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        if self.help:  # type: ignore[attr-defined]
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(self.help.replace("-", UNBROKEN))  # type: ignore[attr-defined]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for one in self.get_params(ctx):  # type: ignore[attr-defined]
            if (record := one.get_help_record(ctx)) is not None:
                is_argument = one.param_type_name == "argument"
                title = getattr(one, "rich_help_panel", None) or ("Arguments" if is_argument else "Options")
                name = (_argument(one) if one.required else _name(one)) if is_argument else _option(record[0])
                sections.setdefault(title, []).append((name, record[1].replace("  [required]", "")))
        if isinstance(self, TyperGroup):
            commands = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
            sections["Commands"] = [
                (name, (one.help or "").partition("\n\n")[0]) for name, one in commands if one is not None
            ]
        for title, rows in sections.items():
            _write(formatter, title, rows)

    def invoke(self, ctx: Any) -> Any:
        arguments = (one for one in self.get_params(ctx) if one.param_type_name == "argument")  # type: ignore[attr-defined]
        check_given({one.metavar: ctx.params.get(one.name) for one in arguments})
        return super().invoke(ctx)  # type: ignore[misc]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)  # type: ignore[misc,no-any-return]
        except typer.BadParameter as error:
            # how pydantic begins what typer says through it
            error.message = error.message.removeprefix("Value error, ")
            raise


class Command(_Plain, TyperCommand):
    """A command whose help keeps its words whole, and which says at once that its arguments are swapped."""


class Group(_Plain, TyperGroup):
    """A command with commands of its own."""


def _argument(one: Any) -> str:
    return _name(one) if one.required else f"[{_name(one)}]"


def _name(one: Any) -> str:
    name = str(one.metavar or one.name.upper())
    # several names say themselves how many there may be
    return name + "..." if one.nargs == -1 and " " not in name else name


def _option(shown: str) -> str:
    for pattern, plain in VALUES.items():
        shown = re.sub(f" (?:{pattern})$", rf" {plain}", shown)
    return shown


def _write(formatter: Any, title: str, rows: list[tuple[str, str]]) -> None:
    from lorakit.cli.terminal import colored

    beside = formatter.width >= NARROW or all(len(name) <= SHORT_NAME for name, _ in rows)

    if colored(sys.stdout):
        title = typer.style(title, bold=True)
        rows = [(typer.style(name, fg="cyan", bold=True), text) for name, text in rows]
    rows = [(name, text.replace("-", UNBROKEN)) for name, text in rows]
    with formatter.section(title):
        formatter.write_dl(rows, col_max=NAME_WIDTH if beside else 4)
