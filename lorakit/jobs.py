"""Jobs from a spec to a folder or a report: an adapter fresh or trained, and what quantizing costs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.data.source import Reading
from lorakit.errors import DataError, OutputError, PromiseError
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
from lorakit.trainers.settings import Outcome, Settings
from lorakit.values import ModelReference

if TYPE_CHECKING:
    from torch import nn

    from lorakit.application.starting import Starter
    from lorakit.artifacts.quantization_error import QuantizationReport
    from lorakit.hooks.manager import Plugins
    from lorakit.pipeline import Calibrating
    from lorakit.planning.plan import Plan
    from lorakit.trainers.display import Display
    from lorakit.trainers.tasks import Task


# an adapter and two moments of up to four bytes a parameter, in the two checkpoints that are kept
CHECKPOINT_FACTOR = 2 * 5


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


@dataclass(frozen=True, slots=True)
class Training:
    """What to train on, how it is read, and how to train; `sample` is a prompt to answer before and after."""

    data: str
    settings: Settings
    loss: str | None = None
    sample: str | None = None
    resume: bool = False
    reading: Reading = field(default_factory=Reading)


def adapt(job: Job, plugins: Plugins, reporter: Reporter = SILENT, *, seed: int = 0) -> nn.Module:
    """Write a fresh adapter, and return the model that it is on. Raises: LorakitError, WriteError."""
    from lorakit.artifacts.folders import claimed

    with claimed(job.output, job.force):
        return _adapt(job, plugins, reporter, seed)


def _decided(job: Job, first: nn.Module, plugins: Plugins, reporter: Reporter, **step: Any) -> Plan:
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

    source = None if job.calibration is None else read_source(job.calibration, Reading(), reporter)
    first = read_first(job.model, plugins, reporter)
    plan = _decided(job, first, plugins, reporter)
    data = None
    if source is not None:
        data = make_task(source, first, job.model, Settings(held_out=0.0, seed=seed), reporter=reporter)
    require_space(job.output, plan.memory.gradients + job.with_base * plan.memory.weights)
    reporter.show_plan(plan)
    reporter.say(f"\n{device_words()}")
    model, starter = read_started(job.model, first, plan, plugins, reporter, seed=seed)
    _apply(job, starter, model, data, reporter)
    _save(job, model, plugins, reporter)
    held = summarize(model)
    reporter.say(
        f"{job.output}: {held.added_parameters:,} parameters in {show_bytes(held.adapter_bytes)}; "
        f"the model holds {show_bytes(held.weight_bytes)} of weights"
    )
    return model


def train(job: Job, training: Training, plugins: Plugins, display: Display, reporter: Reporter = SILENT) -> Outcome:
    """Train an adapter and write it; a stopped run leaves checkpoints alone.

    Raises: LorakitError, WriteError, TrainingError where it leaves the finite numbers.
    """
    from lorakit.artifacts.folders import claimed

    with claimed(job.output, job.force), _checkpoints_of(job, training.resume):
        return _train(job, training, plugins, display, reporter)


def _train(job: Job, training: Training, plugins: Plugins, display: Display, reporter: Reporter) -> Outcome:
    from lorakit.artifacts.folders import require_space
    from lorakit.artifacts.owning import discard
    from lorakit.planning.report import show_bytes
    from lorakit.trainers.tasks import make_task, read_source

    settings = training.settings
    source = read_source(training.data, training.reading, reporter)
    other = None if job.calibration is None else read_source(job.calibration, training.reading, reporter)
    first = read_first(job.model, plugins, reporter)
    plan = _decided(
        job, first, plugins, reporter,
        batch=settings.batch, tokens=settings.tokens, recompute=settings.gradient_checkpointing,
    )  # fmt: skip
    task = make_task(source, first, job.model, settings, training.loss, reporter)
    calibrating = task
    if other is not None:
        alone = replace(settings, held_out=0.0)
        calibrating = make_task(other, first, job.model, alone, training.loss, reporter)
    adapters = plan.memory.gradients * (1 + bool(settings.save_every) * CHECKPOINT_FACTOR)
    require_space(job.output, adapters + job.with_base * plan.memory.weights)
    reporter.show_plan(plan)
    reporter.say(f"\n{device_words()}")
    reporter.say(task.description)
    device = accelerator()
    model, starter = read_started(job.model, first, plan, plugins, reporter, seed=settings.seed, device=device)
    if device is not None:
        model.to(device)
    if not training.resume:
        discard(job.checkpoints)
        job.checkpoints.mkdir()
    _apply(job, starter, model, calibrating, reporter)
    # a fresh adapter changes nothing, and by now the model computes in what is quick here
    _sample(training.sample, task, model, "before", reporter)
    outcome = task.train(model, job.checkpoints, display, resume=training.resume)
    if outcome.stopped:
        return outcome
    _sample(training.sample, task, model, "after", reporter)
    _save(job, model, plugins, reporter, task.save_beside)
    reporter.say(f"{job.output}: adapter of {plan.trainable:,} parameters, {show_bytes(plan.memory.gradients)}")
    return outcome


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
            text, structure, model.text, tokens=tokens, rows=rows, trust_remote_code=model.trust_remote_code
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


def _apply(job: Job, starter: Starter, model: nn.Module, data: Calibrating | None, reporter: Reporter) -> None:
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


def _save(
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


@contextmanager
def _checkpoints_of(job: Job, resume: bool) -> Iterator[None]:
    """Have the folder of checkpoints there inside the block, as the trace of a run, rid of what killed runs left.

    Raises: OutputError where checkpoints of another run stand, DataError where there is none to go on from.
    """
    from lorakit.artifacts.owning import owned, sweep_within
    from lorakit.trainers.checkpoints import checkpoint_steps

    folder = job.checkpoints
    if resume and not folder.exists():
        raise DataError(f"nothing to resume: {folder} is not there; run it without --resume")
    if os.path.lexists(folder) and not folder.is_dir():
        raise OutputError(f"{folder} is no folder, and checkpoints go there")
    if checkpoint_steps(folder) and not resume and not job.force:
        raise OutputError(f"{folder} exists from an earlier run; --resume goes on from it, --force drops it")
    with owned(folder):
        sweep_within(folder)
        try:
            folder.mkdir(exist_ok=True)
            yield
        finally:
            with suppress(OSError):
                folder.rmdir()


def _sample(prompt: str | None, task: Task, model: nn.Module, when: str, reporter: Reporter) -> None:
    if prompt is not None:
        with reporter.working(f"answering {prompt!r}"):
            answer = task.answer(model, prompt)
        reporter.say(f"sample {when} training, to {prompt!r}:\n  {answer!r}")
