"""`lorakit inspect`: what an adapter folder holds."""

from __future__ import annotations

from typing import Annotated

import typer

from lorakit.cli import options


def inspect(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="An adapter folder, lorakit's or PEFT's.")],
    format_: options.Format = options.OutputFormat.text,
    every_module: options.EveryModule = False,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Show what an adapter folder holds: modules, ranks, dtypes, sizes, and how far each adapter moved its weight.

    Example: lorakit inspect adapter
    """
    from pathlib import Path

    from lorakit.artifacts.inspection import adapter_view, inspect_adapter
    from lorakit.cli.terminal import print_json, show
    from lorakit.planning import codec

    found = inspect_adapter(Path(adapter), allow_pickle)
    if format_ is options.OutputFormat.json:
        print_json(codec.to_plain(found))
    else:
        show(adapter_view(found, every_module=every_module))
