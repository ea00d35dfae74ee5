"""A training job from the command line: the plan shown, an adapter trained, its folder written."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.cli.calibration import ROWS, calibration_batches
from lorakit.cli.tasks import Task, make_task
from lorakit.cli.terminal import console, say, show, tracked, working
from lorakit.errors import OutputError
from lorakit.language.spec import Spec
from lorakit.trainers.settings import Outcome, Settings

if TYPE_CHECKING:
    from torch import nn

    from lorakit.planning.plan import Plan


# an adapter and two moments of up to four bytes a parameter, in the two checkpoints that are kept
CHECKPOINT_FACTOR = 2 * 5


@dataclass(frozen=True, slots=True)
class Job:
    """What to train and where to put it; `sample` is a prompt that the model answers before and after."""

    spec: Spec | Plan
    model: str
    data: str
    output: Path
    settings: Settings
    loss: str | None = None
    sample: str | None = None
    resume: bool = False
    with_base: bool = False
    force: bool = False
    trust_remote_code: bool = False
    allow_pickle: bool = False
    calibration: str | None = None
    calibration_rows: int = ROWS

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints, beside the output, which itself appears only when it is whole."""
        return self.output.with_name(f"{self.output.name}-checkpoints")


def run(job: Job) -> Outcome:
    """Do a training job, telling standard output what happens. Raises: LorakitError, WriteError."""
    from lorakit.application.apply import apply_plan
    from lorakit.artifacts.adapter_folder import save_adapter
    from lorakit.artifacts.folders import require_space
    from lorakit.cli.inputs import decide, device_words, load_model, load_planned
    from lorakit.cli.saving import base_writer
    from lorakit.planning.report import plan_view, show_bytes
    from lorakit.plugins import default_plugins
    from lorakit.trainers.display import Display

    _check_places(job)
    plugins = default_plugins()
    structure = load_model(job.model, with_weights=False, trust_remote_code=job.trust_remote_code)
    plan = decide(job.spec, structure, batch=job.settings.batch, tokens=job.settings.tokens)
    task = make_task(job.data, structure, job.model, job.settings, job.loss, job.trust_remote_code)
    calibration = task
    if job.calibration is not None:
        whole = replace(job.settings, held_out=0.0)
        calibration = make_task(job.calibration, structure, job.model, whole, job.loss, job.trust_remote_code)
    adapters = plan.memory.gradients * (1 + bool(job.settings.save_every) * CHECKPOINT_FACTOR)
    require_space(job.output, adapters + job.with_base * plan.memory.weights)
    show(plan_view(plan))
    say(f"\n{device_words()}")
    say(task.description)
    device = _accelerator()
    model = load_planned(
        job.model, plan, device=device, trust_remote_code=job.trust_remote_code, allow_pickle=job.allow_pickle
    )
    if device is not None:
        model.to(device)
    batches = calibration_batches(plan, model, plugins, calibration, job.calibration, job.calibration_rows)
    if not job.resume:
        shutil.rmtree(job.checkpoints, ignore_errors=True)
    apply_plan(
        plan,
        model,
        plugins,
        seed=job.settings.seed,
        progress=lambda entries: tracked(entries, "applying"),
        calibration=batches,
    )
    # a fresh adapter changes nothing, and by now the model computes in what is quick here
    _sample(job, task, model, "before")
    outcome = task.train(model, job.checkpoints, plugins, Display(console(stderr=True), say), resume=job.resume)
    if outcome.stopped:
        return outcome
    _sample(job, task, model, "after")

    def save_beside(folder: Path) -> None:
        task.save_beside(folder)
        if job.with_base:
            base_writer(model, plugins)(folder)

    save_adapter(model, job.output, plugins, replace=job.force, beside=save_beside)
    if job.checkpoints.is_dir() and not any(job.checkpoints.iterdir()):
        job.checkpoints.rmdir()
    say(f"{job.output}: adapter of {plan.trainable:,} parameters, {show_bytes(plan.memory.gradients)}")
    return outcome


def _check_places(job: Job) -> None:
    """Refuse to write where something stands, before any work is done."""
    from lorakit.artifacts.folders import check_output

    check_output(job.output, job.force)
    if job.checkpoints.exists() and not job.resume and not job.force:
        raise OutputError(f"{job.checkpoints} exists from an earlier run; --resume goes on from it, --force drops it")


def _accelerator() -> str | None:
    import torch

    return "cuda" if torch.cuda.is_available() else None


def _sample(job: Job, task: Task, model: nn.Module, when: str) -> None:
    if job.sample is not None:
        with working(f"answering {job.sample!r}"):
            answer = task.answer(model, job.sample)
        say(f"sample {when} training, to {job.sample!r}:\n  {answer!r}")
