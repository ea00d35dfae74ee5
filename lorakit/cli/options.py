"""Arguments and options that several commands take, each with one meaning."""

from __future__ import annotations

import os
from contextlib import redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lorakit.cli import complete


class OutputFormat(StrEnum):
    """How a command prints its data."""

    text = "text"
    json = "json"


def _silence(context: typer.Context, quiet: bool) -> bool:
    """Send what a command prints nowhere until it ends; errors have a stream of their own."""
    if quiet:
        nowhere = context.with_resource(Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        context.with_resource(redirect_stdout(nowhere))
    return quiet


Quiet = Annotated[
    bool, typer.Option("-q", "--quiet", callback=_silence, help="Print nothing but errors.", show_default=False)
]
Spec = Annotated[
    str,
    typer.Argument(
        metavar="SPEC",
        help="A .lora file, a plan.json, or `-` for a spec on standard input.",
        show_default=False,
        autocompletion=complete.specs,
    ),
]
Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A Hugging Face folder or hub id, or FILE.py:FACTORY.", show_default=False),
]
Set = Annotated[list[str], typer.Option("--set", metavar="NAME=VALUE", help="Give a `let` name another value.")]
Output = Annotated[str, typer.Option("-o", "--output", metavar="OUT", help="The folder to write.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Replace what stands at the output place.")]
WithBase = Annotated[bool, typer.Option("--with-base", help="Write the quantized base too, as a model folder `base`.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="The seed that adapters are drawn with.")]
Format = Annotated[OutputFormat, typer.Option("--format", help="How to print.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let the model's own Python code run.", show_default=False)
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read weights from pickle files, which can run code.", show_default=False)
]
EveryModule = Annotated[bool, typer.Option("--modules", help="A row for every module instead of one for each kind.")]
Calibration = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="DATA",
        help="For quantizers that see a layer's inputs first: data as `lorakit train` takes it.",
        show_default=False,
    ),
]
CalibrationRows = Annotated[int, typer.Option("--calibration-rows", min=1, help="Rows of that data to run over.")]
Batch = Annotated[
    int | None,
    typer.Option(
        "--batch", min=1, help="Rows of a training step; the spec's `step batch` unless given.", show_default=False
    ),
]
GradientCheckpointing = Annotated[
    bool, typer.Option("--gradient-checkpointing", help="Recompute activations: less memory, more time.")
]
Tokens = Annotated[
    int | None,
    typer.Option(
        "--tokens", min=1, help="Tokens of a row at most; the spec's `step tokens` unless given.", show_default=False
    ),
]
