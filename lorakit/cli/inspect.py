"""`lorakit inspect`: what an adapter folder holds, and what a spec's quantizers cost a model."""

from __future__ import annotations

from pathlib import Path

import click

from lorakit.cli import complete, options
from lorakit.cli.help import command

# what only `--quant` understands, by parameter and by option
OF_QUANT = {
    "loss": "--loss", "tokens": "--tokens", "rows": "--rows", "plot": "--plot", "variables": "--set",
    "trust_remote_code": "--trust-remote-code",
}  # fmt: skip


class WithQuant(click.Option):
    """An option that says something beside --quant alone."""

    section = "With --quant"


@command("inspect")
@click.argument(
    "folder",
    metavar="ADAPTER|MODEL",
    type=options.ANY_PATH,
    help="An adapter folder, lorakit's or PEFT's; with --quant a model: a Hugging Face folder or hub id, or "
    "FILE.py:FACTORY.",
)
@click.option(
    "--quant",
    metavar="SPEC",
    shell_complete=complete.specs,
    help="Quantize MODEL as this .lora file or plan.json says, and show the error.",
)
@click.option(
    "--loss",
    cls=WithQuant,
    metavar="TEXT",
    type=options.ANY_PATH,
    help="The model's loss on this .jsonl or text file, before and after.",
)
@click.option(
    "--tokens", cls=WithQuant, type=options.Whole(min=2), default=512, help="Tokens of a row of TEXT at most."
)
@click.option("--rows", cls=WithQuant, type=options.FROM_ZERO, default=0, help="Rows of TEXT at most; 0 takes all.")
@click.option(
    "--plot",
    cls=WithQuant,
    metavar="FILE",
    type=options.ANY_PATH,
    help="Draw the error of every module into this .png, .svg or .pdf.",
)
@options.variables
@options.form
@options.every_module
@options.trust_remote_code
@options.allow_pickle
@options.quiet
@click.pass_context
def inspect(
    context: click.Context,
    folder: str,
    quant: str | None,
    loss: str | None,
    tokens: int,
    rows: int,
    plot: str | None,
    variables: tuple[str, ...],
    form: str,
    every_module: bool,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> None:
    """Show what an adapter folder holds, or with --quant what quantizing costs each weight of a model.

    Of an adapter: modules, ranks, dtypes, sizes, how far each moved its weight.

    Of a model: the error of every weight that the spec quantizes, its bits, and
    the loss on a text. Nothing is written but the picture.

    Example: lorakit inspect adapter

    Example: lorakit inspect --quant qlora.lora ./SmolLM2-135M --loss book.txt
    """
    from lorakit.cli.given import check_adapter, check_given
    from lorakit.cli.terminal import print_json, show
    from lorakit.planning import codec

    found: object
    if quant is None:
        _refuse(context, OF_QUANT, "--quant SPEC, which measures a model; without it `inspect` shows an adapter")
        _refuse_model(Path(folder))
        check_adapter(folder)
        from lorakit.artifacts.inspection import adapter_view, inspect_adapter

        found = inspection = inspect_adapter(Path(folder), allow_pickle)
        view = adapter_view(inspection, every_module=every_module)
    else:
        check_given({"SPEC": quant, "MODEL": folder})
        from lorakit.artifacts.pictures import check_plot
        from lorakit.artifacts.quantization_view import quantization_view

        if loss is None:
            _refuse(context, {"tokens": "--tokens", "rows": "--rows"}, "--loss TEXT")
        if plot is not None:
            check_plot(Path(plot))
        from lorakit.cli.inputs import read_spec
        from lorakit.cli.terminal import reporter
        from lorakit.jobs import measure
        from lorakit.plugins import default_plugins
        from lorakit.values import ModelReference

        text = Path(loss) if loss else None
        model = ModelReference(folder, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
        found = report = measure(
            read_spec(quant, variables), model, default_plugins(), reporter(), text=text, tokens=tokens, rows=rows
        )
        view = quantization_view(report, every_module=every_module)
    if form == "json":
        print_json(codec.to_plain(found))
    else:
        show(view)
    if quant is not None and plot is not None:
        from lorakit.artifacts.quantization_view import save_plot

        save_plot(report, Path(plot))


def _refuse_model(folder: Path) -> None:
    """Raise AdapterError for a model's folder in an adapter's place."""
    try:
        is_model = (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file()
    except OSError:
        # reading the adapter says why
        return
    if is_model:
        from lorakit.errors import AdapterError

        raise AdapterError(
            f"{folder} is a model and no adapter; `lorakit inspect --quant SPEC {folder}` shows what quantizing costs"
        )


def _refuse(context: click.Context, names: dict[str, str], belongs_to: str) -> None:
    """Raise BadParameter for an option that was given and means nothing here."""
    for name, option in names.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise click.BadParameter(f"it belongs to {belongs_to}", param_hint=f"'{option}'")
