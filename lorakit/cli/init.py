"""`lorakit init`: a commented starter spec for a model."""

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
    model: options.Model,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="The file to write; `-` prints it.")
    ] = "-",
    domains: Annotated[Domains, typer.Option(help="One domain takes rank 16, many take 64.")] = Domains.one,
    force: options.Force = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Write a commented starter spec for a model, from its structure: roles, a rank, QLoRA where the weights are large.

    Example: lorakit init ./SmolLM2-135M -o start.lora
    """
    from pathlib import Path

    from lorakit.artifacts.folders import claimed, write_text
    from lorakit.cli.inputs import load_model
    from lorakit.cli.terminal import say
    from lorakit.planning.inventory import read_inventory
    from lorakit.planning.starter import starter_spec
    from lorakit.plugins import default_plugins

    def text() -> str:
        plugins = default_plugins()
        structure = load_model(model, with_weights=False, trust_remote_code=trust_remote_code)
        return starter_spec(read_inventory(structure, plugins), plugins, domains.value, model)

    if output == "-":
        sys.stdout.write(text())
        return
    with claimed(Path(output), force):
        write_text(Path(output), text())
    say(f"{output}: see what it does with `lorakit plan {output} {model}`")
