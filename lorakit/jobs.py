"""Jobs from a spec to a folder or a report: a fresh adapter, and what quantizing costs; `training` trains one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.data.source import Reading
from lorakit.errors import PromiseError
from lorakit.language.spec import Spec
from lorakit.pipeline import (
    CALIBRATION_ROWS,
    accelerator,
    calibration_batches,
    decide,
    device_words,
    read_first,
    read_model,
    read_started,
    read_structure,
)
from lorakit.reporter import SILENT, Reporter
from lorakit.trainers.settings import Settings
from lorakit.values import ModelReference

if TYPE_CHECKING:
    from torch import nn

    from lorakit.application.starting import Starter
    from lorakit.artifacts.quantization_error import QuantizationReport
    from lorakit.hooks.manager import Plugins
    from lorakit.pipeline import Calibrating
    from lorakit.planning.plan import Plan


@dataclass(frozen=True, slots=True)
class Job:
    """An adapter to make, and where to put it.

    `calibration` names data for quantizers that see a layer's inputs first; `with_base` writes the quantized base too.
    """

    spec: Spec | Plan
    model: ModelReference
    output: Path
    with_base: bool = False
    force: bool = False
    calibration: str | None = None
    calibration_rows: int = CALIBRATION_ROWS

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints, beside the output, which itself appears only when it is whole."""
        beside = self.output.with_name(f"{self.output.name}-checkpoints")
        # it may be a link to another disk
        return Path(os.path.realpath(beside)) if beside.is_symlink() else beside

    @property
    def reads(self) -> tuple[str | None, ...]:
        """The files and folders that the output may not take the place of."""
        return (*(self.spec.sources if isinstance(self.spec, Spec) else ()), self.model.text, self.calibration)

    @property
    def logs(self) -> Path:
        """The folder of what is logged while a run goes on, beside the output."""
        return self.output.with_name(f"{self.output.name}-logs")


def adapt(job: Job, plugins: Plugins, reporter: Reporter = SILENT, *, seed: int = 0) -> nn.Module:
    """Write a fresh adapter, and return the model that it is on. Raises: LorakitError, WriteError."""
    from lorakit.artifacts.folders import claimed

    with claimed(job.output, job.force, *job.reads):
        return _adapt(job, plugins, reporter, seed)


def decided(job: Job, first: nn.Module, plugins: Plugins, reporter: Reporter, **step: Any) -> Plan:
    """Return the plan; one that breaks a promise is shown before it is refused. Raises: PlanError."""
    try:
        return decide(job.spec, first, plugins, **step)
    except PromiseError as broken:
        reporter.show_plan(broken.plan)
        reporter.say("")
        raise


def _adapt(job: Job, plugins: Plugins, reporter: Reporter, seed: int) -> nn.Module:
    from lorakit.application.summary import summarize
    from lorakit.artifacts.folders import require_space
    from lorakit.planning.report import show_bytes
    from lorakit.trainers.tasks import make_task, read_source

    source = None if job.calibration is None else read_source(job.calibration, plugins, Reading(), reporter)
    first = read_first(job.model, plugins, reporter)
    plan = decided(job, first, plugins, reporter)
    data = None
    if source is not None:
        data = make_task(source, first, job.model, Settings(held_out=0.0, seed=seed), reporter=reporter)
    require_space(job.output, plan.memory.gradients + job.with_base * plan.memory.weights)
    reporter.show_plan(plan)
    reporter.say(f"\n{device_words()}")
    model, starter = read_started(job.model, first, plan, plugins, reporter, seed=seed)
    apply_job(job, starter, model, data, reporter)
    save_job(job, model, plugins, reporter)
    held = summarize(model)
    reporter.say(
        f"{job.output}: {held.added_parameters:,} parameters in {show_bytes(held.adapter_bytes)}; "
        f"the model holds {show_bytes(held.weight_bytes)} of weights"
    )
    return model


def measure(
    spec: Spec | Plan,
    model: ModelReference,
    plugins: Plugins,
    reporter: Reporter = SILENT,
    *,
    text: Path | None = None,
    tokens: int = 512,
    rows: int = 0,
) -> QuantizationReport:
    """Return what quantizing costs every weight of a model, and with a text its loss, on rows of so many tokens.

    Raises: LorakitError.
    """
    import torch

    from lorakit.artifacts.quantization_error import (
        LossChange,
        QuantizationReport,
        quantize_and_measure,
        quantized_entries,
        together,
    )
    from lorakit.trainers.text_loss import mean_loss, read_loss_text

    structure = read_structure(model, plugins, reporter)
    plan = decide(spec, structure, plugins)
    quantized_entries(plan)
    read = None
    if text is not None:
        read = read_loss_text(
            text, structure, model.text, plugins, tokens=tokens, rows=rows, trust_remote_code=model.trust_remote_code
        )
    loaded = read_model(model, plugins, reporter)
    device = torch.device(accelerator() or "cpu")
    before = 0.0
    if read is not None:
        loaded.to(device)
        before = mean_loss(loaded, read, lambda items: reporter.tracked(items, "loss before"))
    modules = quantize_and_measure(
        plan,
        loaded,
        plugins,
        device=device,
        keep=read is not None,
        progress=lambda entries: reporter.tracked(entries, "quantizing"),
    )
    loss = None
    if read is not None:
        after = mean_loss(loaded, read, lambda items: reporter.tracked(items, "loss after"))
        found = read.tokenized
        loss = LossChange(read.text, len(found.rows), found.cut, read.limit, found.trained_tokens, before, after)
    return QuantizationReport(plan.model_class, modules, together(module.error for module in modules), loss)


def apply_job(job: Job, starter: Starter, model: nn.Module, data: Calibrating | None, reporter: Reporter) -> None:
    """Put on a model what its starter has begun, calibrated where the plan needs it."""
    from lorakit.application.apply import apply_plan

    batches = calibration_batches(
        starter.plan, model, starter.plugins, data, reporter, named=job.calibration, rows=job.calibration_rows
    )
    apply_plan(
        starter.plan,
        model,
        starter.plugins,
        seed=starter.seed,
        progress=lambda entries: reporter.tracked(entries, "applying"),
        calibration=batches,
        started=starter.started,
    )


def save_job(
    job: Job,
    model: nn.Module,
    plugins: Plugins,
    reporter: Reporter,
    beside: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write the adapter folder, with what the task puts beside it, and the base if that is wanted."""
    from lorakit.artifacts.adapter_folder import save_adapter
    from lorakit.huggingface.quantized_base import BASE, write_base

    def add(folder: Path) -> None:
        beside(folder)
        if job.with_base:
            with reporter.working("writing the quantized base"):
                form = write_base(model, folder / BASE, plugins)
            reporter.say(f"{BASE}: {form}")

    save_adapter(model, job.output, plugins, replace=job.force, beside=add)
