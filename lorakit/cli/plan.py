"""`lorakit plan`: what would happen, without reading a weight."""

from __future__ import annotations

from lorakit.cli import options


def plan(
    spec: options.Spec,
    model: options.Model,
    set_: options.Set = [],  # noqa: B006
    every_module: options.EveryModule = False,
    batch: options.Batch = None,
    tokens: options.Tokens = None,
    gradient_checkpointing: options.GradientCheckpointing = False,
    format_: options.Format = options.OutputFormat.text,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Show what a spec makes of a model: modules, parameters, bytes before and after, memory of a training step.

    Reads the model's config alone. The memory is that of a step on --batch × --tokens; where neither is given and the
    spec has no `step`, on 1 × 512.

    Example: lorakit plan qlora.lora ./SmolLM2-135M
    """
    from lorakit.cli.inputs import decide, load_model, read_spec
    from lorakit.cli.terminal import show

    parsed = read_spec(spec, set_)
    structure = load_model(model, with_weights=False, trust_remote_code=trust_remote_code)
    decided = decide(parsed, structure, batch=batch, tokens=tokens, recompute=gradient_checkpointing)
    if format_ is options.OutputFormat.json:
        print(decided.to_json())
        return
    from lorakit.planning.report import plan_view

    show(plan_view(decided, every_module=every_module))
