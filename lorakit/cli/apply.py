"""`lorakit apply`: the plan, then the work, then a folder."""

from __future__ import annotations

from lorakit.cli import options
from lorakit.cli.help import command
from lorakit.pipeline import CALIBRATION_ROWS


@command("apply")
@options.spec
@options.model
@options.output
@options.variables
@options.with_base
@options.force
@options.calibration
@options.calibration_rows(default=CALIBRATION_ROWS)
@options.seed
@options.every_module
@options.trust_remote_code
@options.allow_pickle
@options.quiet
def apply(
    spec: str,
    model: str,
    output: str,
    variables: tuple[str, ...],
    with_base: bool,
    force: bool,
    calibration: str | None,
    calibration_rows: int,
    seed: int,
    every_module: bool,
    trust_remote_code: bool,
    allow_pickle: bool,
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
    job = Job(read_spec(spec, variables), reference, Path(output), with_base, force, calibration, calibration_rows)
    adapt(job, default_plugins(), reporter(every_module), seed=seed)
