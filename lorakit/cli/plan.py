"""`lorakit plan`: what would happen, without reading a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lorakit.cli import options
from lorakit.cli.help import command

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lorakit.language.amounts import Amount
    from lorakit.language.spec import Spec
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
    "--devices",
    type=options.FROM_ONE,
    default=1,
    help="Show what each of so many devices holds, over which lorakit.shard spreads the model.",
)
@click.option(
    "--frozen",
    type=click.Choice(["shard", "replicate"]),
    default="shard",
    help="Whether it spreads the frozen weights too, or what trains alone.",
)
@click.option(
    "--fit",
    "size",
    type=options.Size(),
    help="Say what to change so that a step holds no more than this, as in 24GiB: the cheapest first.",
)
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
    devices: int,
    frozen: str,
    size: Amount | None,
    form: str,
    trust_remote_code: bool,
) -> None:
    """Show what a spec makes of a model: modules, parameters, bytes before and after, memory of a training step.

    Reads the model's config alone. The memory is that of a step on --batch × --tokens; where neither is given and the
    spec has no `step`, on 1 × 512. With --devices it is what each device holds, with rows of its own.

    With --fit the plan is that of the spec so changed, and what to write stands below it. It takes, in this order,
    what costs time alone (blocks computed again, optimizer state that pages), weights in four bits, fewer rows,
    shorter ones, and a lower rank.

    Where it breaks a `require` of the spec, it is shown, and the exit code is 2.

    Example: lorakit plan qlora.lora ./SmolLM2-135M
    """
    from lorakit.cli.inputs import decide, load_model, read_spec
    from lorakit.errors import PromiseError

    parsed = read_spec(spec, variables)
    structure = load_model(model, with_weights=False, trust_remote_code=trust_remote_code)
    step: dict[str, Any] = {"recompute": gradient_checkpointing, "devices": devices, "frozen": frozen}
    if size is not None:
        _fit(parsed, structure, size, form, every_module, batch, tokens, step)
        return
    try:
        decided = decide(parsed, structure, batch=batch, tokens=tokens, **step)
    except PromiseError as broken:
        _print(broken.plan, form, every_module)
        raise
    _print(decided, form, every_module)


def _fit(
    parsed: Spec | Plan,
    structure: Any,
    size: Amount,
    form: str,
    every_module: bool,
    batch: int | None,
    tokens: int | None,
    asked: Mapping[str, Any],
) -> None:
    """Show the plan that fits, and what makes it fit. Raises: PlanError where nothing does."""
    from dataclasses import replace

    from lorakit.cli.inputs import decider
    from lorakit.cli.terminal import say
    from lorakit.errors import PlanError
    from lorakit.language.spec import Spec
    from lorakit.language.statements import Step
    from lorakit.planning.fitting import fit, needs
    from lorakit.planning.report import show_bytes

    if not isinstance(parsed, Spec):
        raise PlanError("a plan made elsewhere keeps its decisions: give --fit the spec that it was made of")
    step = parsed.step or Step()
    said: dict[str, Any] = {"batch": batch or step.batch or 1, "tokens": tokens or step.tokens or 512}
    found = fit(replace(parsed, step=replace(step, **said)), decider(structure, **asked), size)
    _print(found.plan, form, every_module)
    if form != "text":
        return
    wanted = f"{size.written:g}{size.unit}"
    held = show_bytes(needs(found.plan))
    if not found.changes:
        say(f"\na step of {said['batch']} × {said['tokens']} fits {wanted} as it is: it holds {held}")
        return
    say(f"\na step fits {wanted}, and holds {held}, with")
    for change in found.changes:
        say(f"  {change.words}")
    say(f"that is\n\n{found.spec}")


def _print(plan: Plan, form: str, every_module: bool) -> None:
    from lorakit.cli.terminal import print_data, show
    from lorakit.planning.report import plan_markdown, plan_view

    if form == "json":
        print_data(plan.to_json())
    elif form == "md":
        print_data(plan_markdown(plan, every_module=every_module))
    else:
        show(plan_view(plan, every_module=every_module))
