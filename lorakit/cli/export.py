"""`lorakit export`: an adapter as a GGUF file for llama.cpp."""

from __future__ import annotations

from pathlib import Path

import click

from lorakit.cli import options
from lorakit.cli.help import command


@command("export")
@options.adapter
@options.model
@click.option("-o", "--output", metavar="OUT.gguf", type=options.ANY_PATH, required=True, help="The file to write.")
@click.option(
    "--dtype", type=click.Choice(["f32", "f16", "bf16"]), default="f32", help="What to write the matrices in."
)
@options.force
@options.trust_remote_code
@options.allow_pickle
@options.quiet
def export(
    adapter: str,
    model: str,
    output: str,
    dtype: str,
    force: bool,
    trust_remote_code: bool,
    allow_pickle: bool,
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
            Path(adapter), structure, target, default_plugins(), dtype=dtype, allow_pickle=allow_pickle
        )
    say(
        f"{target}: {done.pairs} pairs of matrices for {done.architecture}, alpha {done.alpha:g}, "
        f"{show_bytes(target.stat().st_size)} in {dtype}; llama.cpp loads it with --lora"
    )
