"""`lorakit train`: apply, then a trainer that people already use, then the adapter folder."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from lorakit.cli import options
from lorakit.pipeline import CALIBRATION_ROWS


class Schedule(StrEnum):
    """How the learning rate goes behind the warm-up."""

    linear = "linear"
    cosine = "cosine"
    cosine_with_restarts = "cosine_with_restarts"
    polynomial = "polynomial"
    constant = "constant"
    inverse_sqrt = "inverse_sqrt"


class Without(StrEnum):
    """What training does without a checkpoint that was due."""

    stop = "stop"
    go_on = "go-on"


def train(
    spec: options.Spec,
    model: options.Model,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="JSONL, JSON, CSV, parquet, text, a `datasets` folder or what a plugin reads; for a PyTorch model "
            "FILE.py:FACTORY, whose FACTORY() returns a sequence of (input, target) pairs.",
            show_default=False,
        ),
    ],
    output: options.Output,
    set_: options.Set = [],  # noqa: B006
    columns: Annotated[
        str,
        typer.Option(
            metavar="NAME=COLUMN,…",
            help="What the data's columns are: prompt=question,completion=answer.",
            show_default=False,
        ),
    ] = "",
    max_left_out: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the data that may have nothing to learn.")
    ] = 0.5,
    steps: Annotated[int, typer.Option(min=0, help="Training steps; 0 takes --epochs.")] = 0,
    epochs: Annotated[float, typer.Option(min=0.01, help="Passes over the data, where --steps is not given.")] = 1.0,
    batch: options.Batch = None,
    tokens: options.Tokens = None,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches of a step: their gradients add up.")] = 1,
    pack: Annotated[
        bool, typer.Option("--pack", help="Several records in a row, which do not see each other; for language models.")
    ] = False,
    lr: Annotated[
        float | None, typer.Option(min=0, help="Replaces the optimizer's learning rate.", show_default=False)
    ] = None,
    schedule: Annotated[
        Schedule | None,
        typer.Option(
            metavar="NAME",
            help="How the rate goes: linear, cosine, cosine_with_restarts, polynomial, constant or inverse_sqrt. "
            "Linear unless the optimizer wants it constant.",
            show_default=False,
        ),
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Steps over which the learning rate rises.")] = 0,
    weight_decay: Annotated[
        float | None, typer.Option(min=0, help="Replaces the optimizer's weight decay.", show_default=False)
    ] = None,
    max_grad_norm: Annotated[float, typer.Option(min=0, help="The gradient's norm is cut to this; 0 leaves it.")] = 1.0,
    held_out: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.9, help="Share of the data kept for measuring; 0.05 unless given.", show_default=False
        ),
    ] = None,
    held_out_data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Data of its own to measure on, in place of a share.", show_default=False),
    ] = None,
    evaluate_every: Annotated[
        int, typer.Option(min=0, help="Steps between held-out losses; 0 measures at the ends.")
    ] = 0,
    save_every: Annotated[int, typer.Option(min=0, help="Steps between checkpoints; 0 keeps none on the way.")] = 0,
    gradient_checkpointing: options.GradientCheckpointing = False,
    calibration: options.Calibration = None,
    calibration_rows: options.CalibrationRows = CALIBRATION_ROWS,
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:FUNCTION",
            help="Loss of a PyTorch model: FUNCTION(prediction, target), a mean over rows. Without it cross-entropy "
            "over the last dimension for whole-number targets, the mean squared error for others.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        str,
        typer.Option(metavar="NAMES", help="tensorboard, trackio, wandb, csv: figures on the way.", show_default=False),
    ] = "",
    plot: Annotated[
        str | None, typer.Option(metavar="FILE.png", help="Draw the losses at the end.", show_default=False)
    ] = None,
    sample: Annotated[str | None, typer.Option(metavar="PROMPT", help="Show the answer before and after.")] = None,
    seed: options.Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last whole checkpoint of OUT.")] = False,
    on_failed_checkpoint: Annotated[
        Without, typer.Option(help="Where a checkpoint cannot be written, as on a full disk: stop, or go on without.")
    ] = Without.stop,
    with_base: options.WithBase = False,
    force: options.Force = False,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Adapt a model, train the adapter on your data, and write it as a folder that PEFT loads too.

    Hugging Face models train with transformers' Trainer, plain PyTorch models in a loop of lorakit's. Ctrl-C (or
    SIGTERM) stops after the current step with a checkpoint, from which --resume goes on. Quantizers that see a layer's
    inputs first are calibrated on the training data, unless --calibration names other. Without --batch, --tokens and a
    `step` in the spec a step takes 4 rows of at most 512 tokens.

    A record is `messages` (with `tools`), `conversations`, `prompt` and `completion`, `instruction` and `output`, or
    `text`; --columns says so of columns with other names.

    The folder holds history.jsonl (all that was logged), training.json (command, settings, spec, versions, seed) and a
    model card, README.md, which stays as it is once you have edited it. csv and tensorboard go to OUT-logs.

    Example: lorakit train qlora.lora ./SmolLM2-135M chats.jsonl -o adapter --steps 100
    """
    import shlex
    import sys
    from pathlib import Path

    from lorakit.cli.inputs import read_spec, step_of
    from lorakit.cli.terminal import SIGNALLED, console, reporter, say
    from lorakit.data.shapes import read_columns
    from lorakit.data.source import Reading
    from lorakit.errors import DataError
    from lorakit.jobs import Job
    from lorakit.plugins import default_plugins
    from lorakit.trainers.display import Display
    from lorakit.trainers.reports import chosen_reports
    from lorakit.trainers.settings import Settings
    from lorakit.training import Training
    from lorakit.training import train as train_adapter
    from lorakit.values import ModelReference

    if held_out is not None and held_out_data is not None:
        raise DataError("--held-out takes a share of DATA, and --held-out-data brings its own: give one of them")
    parsed = read_spec(spec, set_)
    step, default = step_of(parsed), Settings()
    settings = Settings(
        steps=steps,
        epochs=epochs,
        batch=batch or step.batch or default.batch,
        tokens=tokens or step.tokens or default.tokens,
        accumulate=accumulate,
        pack=pack,
        schedule=schedule.value if schedule else "",
        warmup=warmup,
        max_grad_norm=max_grad_norm,
        held_out=default.held_out if held_out is None else held_out,
        evaluate_every=evaluate_every,
        save_every=save_every,
        gradient_checkpointing=gradient_checkpointing,
        seed=seed,
        goes_on=on_failed_checkpoint is Without.go_on,
    )
    reference = ModelReference(model, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    plugins = default_plugins()
    job = Job(parsed, reference, Path(output), with_base, force, calibration, calibration_rows)
    reading = Reading(read_columns(columns, plugins) if columns else {}, max_left_out)
    training = Training(
        data, settings, loss, sample, resume, reading, held_out_data, lr, weight_decay, chosen_reports(report),
        Path(plot) if plot else None, shlex.join(["lorakit", *sys.argv[1:]]),
    )  # fmt: skip
    display = Display(console(stderr=True), say)
    outcome = train_adapter(job, training, plugins, display, reporter())
    if outcome.stopped:
        say(f"stopped after step {outcome.steps}; --resume goes on from there")
        raise typer.Exit(SIGNALLED + outcome.stopped)
