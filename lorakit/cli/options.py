"""Arguments and options that several commands take, each with one meaning."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from lorakit.cli import complete
from lorakit.cli.terminal import be_quiet


class Whole(click.IntRange):
    """A whole number within bounds, which help calls N."""

    name = "whole number"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "N"


class Number(click.FloatRange):
    """A number within bounds, which help calls X."""

    name = "number"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "X"


class Size(click.ParamType[Any]):
    """Bytes with a unit, as the language has them."""

    name = "size"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from lorakit.language.amounts import Amount, amount_of

        amount = value if isinstance(value, Amount) else amount_of(str(value))
        if amount is None or amount.kind != "B" or amount.value <= 0:
            self.fail(f"{value!r} is no size; it is bytes with a unit, as in 24GiB", param, ctx)
        return amount


ANY_PATH = click.Path()
FROM_ZERO, FROM_ONE, NOT_NEGATIVE = Whole(min=0), Whole(min=1), Number(min=0)

quiet = click.option(
    "-q", "--quiet", is_flag=True, expose_value=False, callback=be_quiet, help="Print nothing but errors."
)
spec = click.argument(
    "spec",
    metavar="SPEC",
    shell_complete=complete.specs,
    help="A .lora file, a plan.json, or `-` for a spec on standard input.",
)
model = click.argument(
    "model", metavar="MODEL", type=ANY_PATH, help="A Hugging Face folder or hub id, or FILE.py:FACTORY."
)
adapter = click.argument("adapter", metavar="ADAPTER", type=ANY_PATH, help="An adapter folder, lorakit's or PEFT's.")
variables = click.option(
    "--set", "variables", multiple=True, metavar="NAME=VALUE", help="Give a `let` name another value."
)
output = click.option("-o", "--output", type=ANY_PATH, required=True, metavar="OUT", help="The folder to write.")
force = click.option("--force", is_flag=True, help="Replace what stands at the output place.")
with_base = click.option("--with-base", is_flag=True, help="Write the quantized base too, as a model folder `base`.")
seed = click.option(
    "--seed", type=FROM_ZERO, default=0, help="The seed of every draw, such as of an adapter's first values."
)
form = click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help="How to print.")
trust_remote_code = click.option("--trust-remote-code", is_flag=True, help="Let the model's own Python code run.")
allow_pickle = click.option("--allow-pickle", is_flag=True, help="Read weights from pickle files, which can run code.")
every_module = click.option(
    "--modules", "every_module", is_flag=True, help="A row for every module instead of one for each kind."
)
calibration = click.option(
    "--calibration",
    metavar="DATA",
    type=ANY_PATH,
    help="For quantizers that see a layer's inputs first: data as `lorakit train` takes it.",
)
calibration_rows = partial(click.option, "--calibration-rows", type=FROM_ONE, help="Rows of that data to run over.")
batch = click.option("--batch", type=FROM_ONE, help="Rows of a training step; the spec's `step batch` unless given.")
gradient_checkpointing = click.option(
    "--gradient-checkpointing", is_flag=True, help="Recompute activations: less memory, more time."
)
tokens = click.option("--tokens", type=FROM_ONE, help="Tokens of a row at most; the spec's `step tokens` unless given.")
