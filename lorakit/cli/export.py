"""`lorakit export`: an adapter as a GGUF file for llama.cpp."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lorakit.cli import options


class Dtype(StrEnum):
    """What an exported adapter's matrices are written in, as GGUF names it."""

    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"


def export(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="An adapter folder, lorakit's or PEFT's.")],
    model: options.Model,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="OUT.gguf", help="The file to write.", show_default=False)
    ],
    dtype: Annotated[Dtype, typer.Option("--dtype", help="What to write the matrices in.")] = Dtype.f32,
    force: Annotated[bool, typer.Option("--force", help="Replace the output file if it exists.")] = False,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    quiet: options.Quiet = False,
) -> None:
    """Write an adapter as a GGUF file, which llama.cpp loads with --lora beside the base model.

    Of the model only its config is read. Needs the gguf package: pip install 'lorakit[gguf]'.

    Example: lorakit export adapter ./SmolLM2-135M -o adapter.gguf
    """
    from lorakit.artifacts.folders import claimed
    from lorakit.artifacts.gguf_export import export_adapter
    from lorakit.cli.inputs import load_model
    from lorakit.cli.terminal import say
    from lorakit.errors import OutputError
    from lorakit.planning.report import show_bytes
    from lorakit.plugins import default_plugins

    target = Path(output)
    with claimed(target, force, adapter, model):
        if target.is_dir():
            raise OutputError(f"{target} is a folder; a GGUF adapter is a file")
        structure = load_model(model, with_weights=False, trust_remote_code=trust_remote_code)
        done = export_adapter(
            Path(adapter), structure, target, default_plugins(), dtype=dtype.value, allow_pickle=allow_pickle
        )
    say(
        f"{target}: {done.pairs} pairs of matrices for {done.architecture}, alpha {done.alpha:g}, "
        f"{show_bytes(target.stat().st_size)} in {dtype.value}; llama.cpp loads it with --lora"
    )
