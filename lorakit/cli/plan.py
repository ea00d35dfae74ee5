"""`lorakit plan`: what would happen, without reading a weight."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from lorakit.cli import options

if TYPE_CHECKING:
    from lorakit.planning.plan import Plan


class Form(StrEnum):
    """How a plan is printed."""

    text = "text"
    json = "json"
    md = "md"


def plan(
    spec: options.Spec,
    model: options.Model,
    set_: options.Set = [],  # noqa: B006
    every_module: options.EveryModule = False,
    batch: options.Batch = None,
    tokens: options.Tokens = None,
    gradient_checkpointing: options.GradientCheckpointing = False,
    format_: Annotated[Form, typer.Option("--format", help="How to print; md is Markdown.")] = Form.text,
    quiet: options.Quiet = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Show what a spec makes of a model: modules, parameters, bytes before and after, memory of a training step.

    Reads the model's config alone. The memory is that of a step on --batch × --tokens; where neither is given and the
    spec has no `step`, on 1 × 512.

    Where it breaks a `require` of the spec, it is shown, and the exit code is 2.

    Example: lorakit plan qlora.lora ./SmolLM2-135M
    """
    from lorakit.cli.inputs import decide, load_model, read_spec
    from lorakit.errors import PromiseError

    parsed = read_spec(spec, set_)
    structure = load_model(model, with_weights=False, trust_remote_code=trust_remote_code)
    try:
        decided = decide(parsed, structure, batch=batch, tokens=tokens, recompute=gradient_checkpointing)
    except PromiseError as broken:
        _print(broken.plan, format_, every_module)
        raise
    _print(decided, format_, every_module)


def _print(plan: Plan, form: Form, every_module: bool) -> None:
    from lorakit.cli.terminal import say, show
    from lorakit.planning.report import plan_markdown, plan_view

    if form is Form.json:
        say(plan.to_json())
    elif form is Form.md:
        say(plan_markdown(plan, every_module=every_module))
    else:
        show(plan_view(plan, every_module=every_module))
