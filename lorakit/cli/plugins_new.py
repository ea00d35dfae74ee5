"""`lorakit plugins new`: a whole distribution to start from."""

from __future__ import annotations

import click

from lorakit.cli import options
from lorakit.cli.help import command


@command("new")
@click.argument(
    "kind",
    metavar="KIND",
    type=click.Choice(["quantizer", "initializer", "optimizer", "method", "role"]),
    help="quantizer, initializer, optimizer, method or role.",
)
@click.argument("name", metavar="NAME", help="What specs will call it.")
@click.option(
    "-o", "--output", metavar="OUT", type=options.ANY_PATH, help="The folder to write; ./lorakit-NAME unless given."
)
@click.option("--like", metavar="KNOWN", help="What a method starts from: lora, or ia3, which has no rank.")
@options.force
@options.quiet
def new(kind: str, name: str, output: str | None, like: str | None, force: bool) -> None:
    """Write a plugin that works: a distribution with its entry point, a real example of its kind, and its tests.

    Example: lorakit plugins new quantizer rounded
    """
    from pathlib import Path

    from lorakit.artifacts.folders import claimed, new_folder
    from lorakit.cli.terminal import say
    from lorakit.errors import PluginError
    from lorakit.plugins import default_plugins
    from lorakit.scaffold import files_of, names_of

    names = names_of(kind, name, like or "")
    claims = default_plugins().claims.get((kind, name), ())
    if claims:
        raise PluginError(f"the {kind} `{name}` is there already, in {' and '.join(claims)}; choose another name")
    folder = Path(output or names.distribution)
    with claimed(folder, force), new_folder(folder) as aside:
        for path, text in files_of(names).items():
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            (aside / path).write_text(text, encoding="utf-8")
    say(f"{folder}: {names.with_article} that works; the code is in {folder / names.package}")
    say(f"install it: pip install -e {folder} --no-deps")
    say(f"check it:   lorakit plugins test {names.distribution}")
    say(f"use it:     {names.example.splitlines()[-1]}")
