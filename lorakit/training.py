"""The job that trains: from a spec, a model and data to an adapter folder that says how it came about."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lorakit.artifacts.folders import claimed, require_space
from lorakit.artifacts.owning import owned, sweep_within
from lorakit.artifacts.pictures import check_plot
from lorakit.data.source import Reading
from lorakit.errors import DataError, OutputError
from lorakit.jobs import Job, apply_job, decided, save_job
from lorakit.language.spec import Spec
from lorakit.pipeline import accelerator, device_limit, device_words, read_first, read_started
from lorakit.processes import ALONE, Processes
from lorakit.reporter import SILENT, Reporter
from lorakit.trainers.checkpoints import checkpoint_steps
from lorakit.trainers.plain_settings import check_settings
from lorakit.trainers.reports import NO_REPORTS, PLAIN, Reports, check_reports
from lorakit.trainers.settings import Outcome, Settings
from lorakit.trainers.tasks import Source, check_file, read_source

if TYPE_CHECKING:
    from torch import nn

    from lorakit.hooks.manager import Plugins
    from lorakit.planning.plan import Plan
    from lorakit.trainers.display import Display
    from lorakit.trainers.tasks import Task

# an adapter and two moments of up to four bytes a parameter, in the two checkpoints that are kept
CHECKPOINT_FACTOR = 2 * 5


@dataclass(frozen=True, slots=True)
class Training:
    """What to train on, how it is read, and how to train; `sample` is a prompt to answer before and after.

    `held_out` is data to measure on, where it lies apart. `lr` and `weight_decay` replace the optimizer's own.
    `reports` are names out of `trainers.reports.REPORTS`, `plot` is where a picture of the losses goes, `command` what
    was typed. Of `processes` that train together the first writes.
    """

    data: str
    settings: Settings
    loss: str | None = None
    sample: str | None = None
    resume: bool = False
    reading: Reading = field(default_factory=Reading)
    held_out: str | None = None
    lr: float | None = None
    weight_decay: float | None = None
    reports: tuple[str, ...] = ()
    plot: Path | None = None
    command: str = ""
    processes: Processes = ALONE


def train(job: Job, training: Training, plugins: Plugins, display: Display, reporter: Reporter = SILENT) -> Outcome:
    """Train an adapter and write it; a stopped run leaves checkpoints alone.

    Raises: LorakitError, WriteError, TrainingError where it leaves the finite numbers.
    """
    reads = (*job.reads, training.data, training.held_out)
    with ExitStack() as places:
        if training.processes.is_first:
            places.enter_context(claimed(job.output, job.force, *reads))
            places.enter_context(_checkpoints_of(job, training.resume))
        sources = _read(job, training, plugins, reporter)
        # what can be seen without them is seen before torch, the other processes and the model
        with training.processes.joined():
            return _train(job, training, sources, plugins, display, reporter)


def _limit(spec: Spec | Plan) -> int | None:
    """Return what a step may hold where the spec says nothing: what the accelerator has."""
    said = spec.memory.limit if not isinstance(spec, Spec) else spec.step and spec.step.limit
    return None if said else device_limit()


class Sources(NamedTuple):
    """What was read of the data to train on, of that to measure on and to calibrate with, where they lie apart."""

    training: Source
    held_out: Source | None
    calibration: Source | None


def _read(job: Job, training: Training, plugins: Plugins, reporter: Reporter) -> Sources:
    """Look at what a run is given, and read its data. Raises: LorakitError."""
    check_reports(training.reports, is_plain=job.model.is_factory)
    if job.model.is_factory:
        check_settings(training.settings)
    if training.plot is not None:
        check_plot(training.plot)
    for code in (training.loss, job.model.text if job.model.is_factory else None):
        if code is not None:
            check_file(code)

    def read(data: str) -> Source:
        return read_source(data, plugins, training.reading, reporter)

    return Sources(
        read(training.data),
        None if training.held_out is None else read(training.held_out),
        None if job.calibration is None else read(job.calibration),
    )


def _train(
    job: Job, training: Training, sources: Sources, plugins: Plugins, display: Display, reporter: Reporter
) -> Outcome:
    from lorakit.artifacts.owning import discard
    from lorakit.planning.report import show_bytes
    from lorakit.trainers.loss_plot import save_loss_plot
    from lorakit.trainers.planned import optimized, shortage_words, training_words
    from lorakit.trainers.record import RunRecord
    from lorakit.trainers.summing import ended, next_steps, peak_memory, start_measuring
    from lorakit.trainers.tasks import make_task

    settings, processes = training.settings, training.processes
    first = read_first(job.model, plugins, reporter)
    plan = decided(
        job, first, plugins, reporter,
        batch=settings.batch, tokens=settings.tokens, recompute=settings.gradient_checkpointing, limit=_limit(job.spec),
    )  # fmt: skip
    plan = optimized(plan, plugins, lr=training.lr, weight_decay=training.weight_decay)
    words = training_words(plan, plugins, settings)
    task = make_task(sources.training, first, job.model, settings, training.loss, reporter, held_out=sources.held_out)
    calibrating = task
    if sources.calibration is not None:
        whole = replace(settings, held_out=0.0)
        calibrating = make_task(sources.calibration, first, job.model, whole, training.loss, reporter)
    adapters = plan.memory.gradients * (1 + bool(settings.save_every) * CHECKPOINT_FACTOR)
    require_space(job.output, adapters + job.with_base * plan.memory.weights)
    reporter.show_plan(plan)
    reporter.say(f"\n{device_words()}")
    if processes.count > 1:
        reporter.say(f"{processes.count} processes train together: the memory above is that of each")
    reporter.say(task.description)
    reporter.say(words)
    reporter.say(shortage_words(first, plan, is_text=task.is_text))
    device = accelerator()
    model, starter = read_started(job.model, first, plan, plugins, reporter, seed=settings.seed, device=device)
    if device is not None:
        model.to(device)
    if processes.is_first and not training.resume:
        discard(job.checkpoints)
        job.checkpoints.mkdir()
    apply_job(job, starter, model, calibrating, reporter)
    # a fresh adapter changes nothing, and by now the model computes in what is quick here
    sample = training.sample if processes.is_first else None
    _sample(sample, task, model, "before", reporter)
    start_measuring()
    reports = Reports(training.reports, job.logs, job.output.name) if processes.is_first else NO_REPORTS
    outcome = task.train(model, job.checkpoints, display, resume=training.resume, reports=reports, processes=processes)
    peak = peak_memory()
    if outcome.stopped or not processes.is_first:
        # to leave is to wait for the first, which has files to write
        processes.meet()
        return outcome
    _sample(sample, task, model, "after", reporter)
    specs = job.spec.sources or {"spec": job.spec.source} if isinstance(job.spec, Spec) else {}
    record = RunRecord(
        training.command, specs, plan, task.settings, words, task.description, outcome,
        dict(plugins.distributions()), task.is_text,
    )  # fmt: skip

    def beside(folder: Path) -> None:
        task.save_beside(folder)
        record.write(folder, job.output.name)

    save_job(job, model, plugins, reporter, beside)
    reporter.say(ended(outcome, peak, plan))
    reporter.say(f"{job.output}: adapter of {plan.trainable:,} parameters, {show_bytes(plan.memory.gradients)}")
    if training.plot is not None:
        save_loss_plot(outcome.history, job.output.name, training.plot)
        reporter.say(f"{training.plot}: the losses")
    if files := [name for name in training.reports if name in PLAIN]:
        reporter.say(f"{job.logs}: {', '.join(files)}")
    reporter.say(f"\n{next_steps(job.output, job.model, first, plan, is_text=task.is_text)}")
    processes.meet()
    return outcome


@contextmanager
def _checkpoints_of(job: Job, resume: bool) -> Iterator[None]:
    """Have the folder of checkpoints there inside the block, as the trace of a run, rid of what killed runs left.

    Raises: OutputError where checkpoints of another run stand, DataError where there is none to go on from.
    """
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
