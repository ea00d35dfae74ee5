"""`lorakit init`: a starter spec for a model, or the spec that means what another tool's config says."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from lorakit.cli import options


class Domains(StrEnum):
    """How much an adapter has to learn."""

    one = "one"
    many = "many"


def init(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A Hugging Face folder or hub id, or FILE.py:FACTORY.", show_default=False
        ),
    ] = "",
    config: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Write what this config says: Axolotl, PEFT (adapter_config.json), TRL or LLaMA-Factory.",
            show_default=False,
        ),
    ] = "",
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="The file to write; `-` prints it.")
    ] = "-",
    domains: Annotated[Domains, typer.Option(help="One domain takes rank 16, many take 64.")] = Domains.one,
    force: options.Force = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Write a commented starter spec for a model, from its structure: roles, a rank, QLoRA where the weights are large.

    With --from it is the spec that means what a config of another tool says; comments name what has no counterpart.

    Example: lorakit init ./SmolLM2-135M -o start.lora
    """
    from pathlib import Path

    from lorakit.artifacts.folders import claimed, write_text
    from lorakit.cli.terminal import say

    if not (model or config):
        raise typer.BadParameter("give a MODEL, or a config of another tool with --from FILE")

    def text() -> str:
        if config:
            from lorakit.foreign.writing import foreign_spec

            return foreign_spec(Path(config), model, output)
        return _starter(model, domains, trust_remote_code)

    if output == "-":
        sys.stdout.write(text())
        return
    with claimed(Path(output), force):
        write_text(Path(output), text())
    say(f"{output}: see what it does with `lorakit plan {output} {model or 'MODEL'}`")


def _starter(model: str, domains: Domains, trust_remote_code: bool) -> str:
    from lorakit.cli.inputs import load_model
    from lorakit.planning.reading import read_inventory
    from lorakit.planning.starter import starter_spec
    from lorakit.plugins import default_plugins

    plugins = default_plugins()
    structure = load_model(model, with_weights=False, trust_remote_code=trust_remote_code)
    return starter_spec(read_inventory(structure, plugins), plugins, domains.value, model)
