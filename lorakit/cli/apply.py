"""`lorakit apply`: the plan, then the work, then a folder."""

from __future__ import annotations

from lorakit.cli import options
from lorakit.cli.calibration import ROWS


def apply(
    spec: options.Spec,
    model: options.Model,
    output: options.Output,
    set_: options.Set = [],  # noqa: B006
    with_base: options.WithBase = False,
    force: options.Force = False,
    calibration: options.Calibration = None,
    calibration_rows: options.CalibrationRows = ROWS,
    seed: options.Seed = 0,
    every_module: options.EveryModule = False,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Adapt a model and write the fresh adapter: adapter_model.safetensors, adapter_config.json and plan.json.

    A Hugging Face model is quantized while it is read, so that no more than its quantized weights is ever in memory.

    Example: lorakit apply qlora.lora ./SmolLM2-135M -o adapter
    """
    from pathlib import Path

    import lorakit
    from lorakit.application.apply import apply_plan
    from lorakit.artifacts.adapter_folder import save_adapter
    from lorakit.artifacts.folders import check_output, require_space
    from lorakit.cli.calibration import calibration_batches
    from lorakit.cli.inputs import decide, device_words, load_model, load_planned, read_spec
    from lorakit.cli.saving import base_writer
    from lorakit.cli.tasks import make_task
    from lorakit.cli.terminal import say, show, tracked
    from lorakit.planning.report import plan_view, show_bytes
    from lorakit.plugins import default_plugins
    from lorakit.trainers.settings import Settings
    from lorakit.values import ModelReference

    folder = Path(output)
    check_output(folder, force)
    parsed = read_spec(spec, set_)
    is_factory = ModelReference(model).is_factory
    first = load_model(model, with_weights=is_factory, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    decided = decide(parsed, first)
    task = None
    if calibration is not None:
        task = make_task(calibration, first, model, Settings(held_out=0.0, seed=seed), None, trust_remote_code)
    require_space(folder, decided.memory.gradients + with_base * decided.memory.weights)
    show(plan_view(decided, every_module=every_module))
    say(f"\n{device_words()}")
    loaded = (
        first
        if is_factory
        else load_planned(model, decided, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    )
    plugins = default_plugins()
    apply_plan(
        decided,
        loaded,
        plugins,
        seed=seed,
        progress=lambda entries: tracked(entries, "applying"),
        calibration=calibration_batches(decided, loaded, plugins, task, calibration, calibration_rows),
    )
    save_adapter(loaded, folder, plugins, replace=force, beside=base_writer(loaded, plugins) if with_base else None)
    held = lorakit.summary(loaded)
    say(
        f"{folder}: {held.added_parameters:,} parameters in {show_bytes(held.adapter_bytes)}; "
        f"the model holds {show_bytes(held.weight_bytes)} of weights"
    )
