"""`lorakit plugins`: what is installed, what fails, and what plugin authors need."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lorakit.cli import options, plugins_new, plugins_test
from lorakit.cli.help import group

if TYPE_CHECKING:
    from rich.console import RenderableType

    from lorakit.hooks.listing import DistributionInfo


@group("plugins", invoke_without_command=True)
@options.form
@click.pass_context
def plugins(context: click.Context, form: str) -> None:
    """List the plugins that are installed, with their options, and those that failed and why.

    Exits 1 where a distribution was left out; other commands mention it only where a spec misses a name.

    Example: lorakit plugins --format json
    """
    if context.invoked_subcommand is not None:
        return
    from dataclasses import asdict

    from lorakit.cli.terminal import WORK_FAILED, print_json, say, show
    from lorakit.hooks.listing import list_plugins
    from lorakit.plugins import default_plugins

    listing = list_plugins(default_plugins())
    if form == "json":
        print_json(asdict(listing))
    else:
        for one in listing.distributions:
            show(*_distribution(one))
        for failure in listing.failures:
            say(f"failed: {failure}")
        if listing.switched_off:
            say(f"switched off: {', '.join(listing.switched_off)}")
    if listing.failures:
        raise SystemExit(WORK_FAILED)


plugins.add_command(plugins_new.new)
plugins.add_command(plugins_test.test)


def _distribution(one: DistributionInfo) -> list[RenderableType]:
    from rich.text import Text

    from lorakit.hooks.options import show_value
    from lorakit.planning.sheet import Sheet

    table = Sheet(
        ("kind", "left"), ("name", "left"), ("option", "left"), ("takes", "prose"), ("default", "prose"),
        ("what it is", "prose"),
    )  # fmt: skip
    for plugin in one.plugins:
        name = plugin.name + (" [double]" if plugin.double else "")
        table.add_row(plugin.kind, name, "", "", "", plugin.summary)
        for option in plugin.options:
            default = "" if option.default is None else show_value(option.default)
            default = "must be given" if option.required else default
            table.add_row("", "", option.name, option.type, default, option.help)
    parts: list[RenderableType] = [Text(f"{one.distribution} {one.version}", style="bold")]
    if one.plugins:
        parts.append(table)
    if one.moments:
        parts.append(Text(f" called at: {', '.join(one.moments)}"))
    return [*parts, Text("")]
