"""`lorakit init`: a starter spec for a model, or the spec that means what another tool's config says."""

from __future__ import annotations

import sys

import click

from lorakit.cli import options
from lorakit.cli.help import command


@command("init")
@click.argument(
    "model",
    metavar="MODEL",
    type=options.ANY_PATH,
    default="",
    help="A Hugging Face folder or hub id, or FILE.py:FACTORY.",
)
@click.option(
    "--from",
    "config",
    metavar="FILE",
    type=options.ANY_PATH,
    help="Write what this config says: Axolotl, PEFT (adapter_config.json), TRL or LLaMA-Factory.",
)
@click.option(
    "-o", "--output", metavar="FILE", type=options.ANY_PATH, default="-", help="The file to write; `-` prints it."
)
@click.option(
    "--domains", type=click.Choice(["one", "many"]), default="one", help="One domain takes rank 16, many take 64."
)
@options.force
@options.trust_remote_code
@options.quiet
def init(model: str, config: str | None, output: str, domains: str, force: bool, trust_remote_code: bool) -> None:
    """Write a commented starter spec for a model, from its structure: roles, a rank, QLoRA where the weights are large.

    With --from it is the spec that means what a config of another tool says; comments name what has no counterpart.

    Example: lorakit init ./SmolLM2-135M -o start.lora
    """
    from pathlib import Path

    from lorakit.artifacts.folders import claimed, write_text
    from lorakit.cli.terminal import say

    if not (model or config):
        raise click.BadParameter("give a MODEL, or a config of another tool with --from FILE")

    def text() -> str:
        if config:
            from lorakit.foreign.writing import foreign_spec

            return foreign_spec(Path(config), model, output)
        return _starter(model, domains, trust_remote_code)

    if output == "-":
        sys.stdout.write(text())
        return
    with claimed(Path(output), force, model, config):
        write_text(Path(output), text())
    say(f"{output}: see what it does with `lorakit plan {output} {model or 'MODEL'}`")


def _starter(model: str, domains: str, trust_remote_code: bool) -> str:
    from lorakit.cli.inputs import load_model
    from lorakit.planning.reading import read_inventory
    from lorakit.planning.starter import starter_spec
    from lorakit.plugins import default_plugins

    plugins = default_plugins()
    structure = load_model(model, with_weights=False, trust_remote_code=trust_remote_code)
    return starter_spec(read_inventory(structure, plugins), plugins, domains, model)
