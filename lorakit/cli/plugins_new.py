"""`lorakit plugins new`: a whole distribution to start from."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from lorakit.cli import options


class Kind(StrEnum):
    """What a plugin can be."""

    quantizer = "quantizer"
    initializer = "initializer"
    optimizer = "optimizer"
    method = "method"
    role = "role"


def new(
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help="quantizer, initializer, optimizer, method or role.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What specs will call it.")],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="OUT", help="The folder to write; ./lorakit-NAME unless given.")
    ] = "",
    like: Annotated[
        str, typer.Option("--like", metavar="KNOWN", help="What a method starts from: lora, or ia3, which has no rank.")
    ] = "",
    force: options.Force = False,
) -> None:
    """Write a plugin that works: a distribution with its entry point, a real example of its kind, and its tests.

    Example: lorakit plugins new quantizer rounded
    """
    from pathlib import Path

    from lorakit.artifacts.folders import claimed, new_folder
    from lorakit.cli.terminal import say
    from lorakit.errors import PluginError
    from lorakit.plugins import default_plugins
    from lorakit.scaffold import files_of, names_of

    names = names_of(kind.value, name, like)
    claims = default_plugins().claims.get((kind.value, name), ())
    if claims:
        raise PluginError(f"the {kind.value} `{name}` is there already, in {' and '.join(claims)}; choose another name")
    folder = Path(output or names.distribution)
    with claimed(folder, force), new_folder(folder) as aside:
        for path, text in files_of(names).items():
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            (aside / path).write_text(text, encoding="utf-8")
    say(f"{folder}: {names.with_article} that works; the code is in {folder / names.package}")
    say(f"install it: pip install -e {folder} --no-deps")
    say(f"check it:   lorakit plugins test {names.distribution}")
    say(f"use it:     {names.example.splitlines()[-1]}")
