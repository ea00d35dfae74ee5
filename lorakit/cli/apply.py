"""`lorakit apply`: the plan, then the work, then a folder."""

from __future__ import annotations

from lorakit.cli import options
from lorakit.pipeline import CALIBRATION_ROWS


def apply(
    spec: options.Spec,
    model: options.Model,
    output: options.Output,
    set_: options.Set = [],  # noqa: B006
    with_base: options.WithBase = False,
    force: options.Force = False,
    calibration: options.Calibration = None,
    calibration_rows: options.CalibrationRows = CALIBRATION_ROWS,
    seed: options.Seed = 0,
    every_module: options.EveryModule = False,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    quiet: options.Quiet = False,
) -> None:
    """Adapt a model and write the fresh adapter: adapter_model.safetensors, adapter_config.json and plan.json.

    A Hugging Face model is quantized while it is read, so that no more than its quantized weights is ever in memory.

    Example: lorakit apply qlora.lora ./SmolLM2-135M -o adapter
    """
    from pathlib import Path

    from lorakit.cli.inputs import read_spec
    from lorakit.cli.terminal import reporter
    from lorakit.jobs import Job, adapt
    from lorakit.plugins import default_plugins
    from lorakit.values import ModelReference

    reference = ModelReference(model, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    job = Job(read_spec(spec, set_), reference, Path(output), with_base, force, calibration, calibration_rows)
    adapt(job, default_plugins(), reporter(every_module), seed=seed)
