"""`lorakit plan`: what would happen, without reading a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lorakit.cli import options
from lorakit.cli.help import command

if TYPE_CHECKING:
    from lorakit.planning.plan import Plan


@command("plan")
@options.spec
@options.model
@options.variables
@options.every_module
@options.batch
@options.tokens
@options.gradient_checkpointing
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "md"]),
    default="text",
    help="How to print; md is Markdown.",
)
@options.trust_remote_code
@options.quiet
def plan(
    spec: str,
    model: str,
    variables: tuple[str, ...],
    every_module: bool,
    batch: int | None,
    tokens: int | None,
    gradient_checkpointing: bool,
    form: str,
    trust_remote_code: bool,
) -> None:
    """Show what a spec makes of a model: modules, parameters, bytes before and after, memory of a training step.

    Reads the model's config alone. The memory is that of a step on --batch × --tokens; where neither is given and the
    spec has no `step`, on 1 × 512.

    Where it breaks a `require` of the spec, it is shown, and the exit code is 2.

    Example: lorakit plan qlora.lora ./SmolLM2-135M
    """
    from lorakit.cli.inputs import decide, load_model, read_spec
    from lorakit.errors import PromiseError

    parsed = read_spec(spec, variables)
    structure = load_model(model, with_weights=False, trust_remote_code=trust_remote_code)
    try:
        decided = decide(parsed, structure, batch=batch, tokens=tokens, recompute=gradient_checkpointing)
    except PromiseError as broken:
        _print(broken.plan, form, every_module)
        raise
    _print(decided, form, every_module)


def _print(plan: Plan, form: str, every_module: bool) -> None:
    from lorakit.cli.terminal import print_data, show
    from lorakit.planning.report import plan_markdown, plan_view

    if form == "json":
        print_data(plan.to_json())
    elif form == "md":
        print_data(plan_markdown(plan, every_module=every_module))
    else:
        show(plan_view(plan, every_module=every_module))
