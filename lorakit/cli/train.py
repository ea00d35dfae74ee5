"""`lorakit train`: apply, then a trainer that people already use, then the adapter folder."""

from __future__ import annotations

import click

from lorakit.cli import options
from lorakit.cli.help import command
from lorakit.pipeline import CALIBRATION_ROWS

SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "inverse_sqrt")


@command("train")
@options.spec
@options.model
@click.argument(
    "data",
    metavar="DATA",
    type=options.ANY_PATH,
    help="JSONL, JSON, CSV, parquet, text, a `datasets` folder or what a plugin reads; for a PyTorch model "
    "FILE.py:FACTORY, whose FACTORY() returns a sequence of (input, target) pairs.",
)
@options.output
@options.variables
@click.option(
    "--columns",
    metavar="NAME=COLUMN",
    help="What the data's columns are, as in prompt=question,completion=answer.",
)
@click.option(
    "--max-left-out",
    type=options.Number(min=0, max=1),
    default=0.5,
    help="Share of the data that may have nothing to learn.",
)
@click.option("--steps", type=options.FROM_ZERO, default=0, help="Training steps; 0 takes --epochs.")
@click.option(
    "--epochs", type=options.Number(min=0.01), default=1.0, help="Passes over the data, where --steps is not given."
)
@options.batch
@options.tokens
@click.option("--accumulate", type=options.FROM_ONE, default=1, help="Batches of a step: their gradients add up.")
@click.option(
    "--pack", is_flag=True, help="Several records in a row, which do not see each other; for language models."
)
@click.option("--lr", type=options.NOT_NEGATIVE, help="Replaces the optimizer's learning rate.")
@click.option(
    "--schedule",
    type=click.Choice(SCHEDULES),
    metavar="NAME",
    help="How the rate goes: linear, cosine, cosine_with_restarts, polynomial, constant or inverse_sqrt. Linear unless "
    "the optimizer wants it constant.",
)
@click.option("--warmup", type=options.FROM_ZERO, default=0, help="Steps over which the learning rate rises.")
@click.option("--weight-decay", type=options.NOT_NEGATIVE, help="Replaces the optimizer's weight decay.")
@click.option(
    "--max-grad-norm", type=options.NOT_NEGATIVE, default=1.0, help="The gradient's norm is cut to this; 0 leaves it."
)
@click.option(
    "--held-out",
    type=options.Number(min=0, max=0.9),
    help="Share of the data kept for measuring; 0.05 unless given.",
)
@click.option(
    "--held-out-data",
    metavar="DATA",
    type=options.ANY_PATH,
    help="Data of its own to measure on, in place of a share.",
)
@click.option(
    "--evaluate-every",
    type=options.FROM_ZERO,
    default=0,
    help="Steps between held-out losses; 0 measures at the ends.",
)
@click.option(
    "--save-every", type=options.FROM_ZERO, default=0, help="Steps between checkpoints; 0 keeps none on the way."
)
@options.gradient_checkpointing
@options.calibration
@options.calibration_rows(default=CALIBRATION_ROWS)
@click.option(
    "--loss",
    metavar="FILE.py:FUNCTION",
    type=options.ANY_PATH,
    help="Loss of a PyTorch model: FUNCTION(prediction, target), a mean over rows. Without it cross-entropy over the "
    "last dimension for whole-number targets, the mean squared error for others.",
)
@click.option(
    "--report",
    metavar="NAMES",
    help="Where figures go on the way: tensorboard, trackio, wandb or csv, with commas between.",
)
@click.option("--plot", metavar="FILE.png", type=options.ANY_PATH, help="Draw the losses at the end.")
@click.option("--sample", metavar="PROMPT", help="Show the answer to it before training and after.")
@options.seed
@click.option("--resume", is_flag=True, help="Go on from the last whole checkpoint in OUT-checkpoints.")
@click.option(
    "--on-failed-checkpoint",
    type=click.Choice(["stop", "go-on"]),
    default="stop",
    help="Where a checkpoint cannot be written, as on a full disk: stop, or go on without.",
)
@options.with_base
@options.force
@options.trust_remote_code
@options.allow_pickle
@options.quiet
def train(
    spec: str,
    model: str,
    data: str,
    output: str,
    variables: tuple[str, ...],
    columns: str | None,
    max_left_out: float,
    steps: int,
    epochs: float,
    batch: int | None,
    tokens: int | None,
    accumulate: int,
    pack: bool,
    lr: float | None,
    schedule: str | None,
    warmup: int,
    weight_decay: float | None,
    max_grad_norm: float,
    held_out: float | None,
    held_out_data: str | None,
    evaluate_every: int,
    save_every: int,
    gradient_checkpointing: bool,
    calibration: str | None,
    calibration_rows: int,
    loss: str | None,
    report: str | None,
    plot: str | None,
    sample: str | None,
    seed: int,
    resume: bool,
    on_failed_checkpoint: str,
    with_base: bool,
    force: bool,
    trust_remote_code: bool,
    allow_pickle: bool,
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

    Example: lorakit train qlora.lora ./SmolLM2-135M chats.jsonl -o adapter
    """
    import os
    import shlex
    import sys
    from pathlib import Path

    from lorakit.cli.inputs import read_spec, step_of
    from lorakit.cli.terminal import SIGNALLED, be_quiet, console, reporter, say
    from lorakit.data.shapes import read_columns
    from lorakit.data.source import Reading
    from lorakit.errors import DataError
    from lorakit.jobs import Job
    from lorakit.plugins import default_plugins
    from lorakit.processes import Processes
    from lorakit.trainers.display import Display
    from lorakit.trainers.reports import chosen_reports
    from lorakit.trainers.settings import Settings
    from lorakit.training import Training
    from lorakit.training import train as train_adapter
    from lorakit.values import ModelReference

    processes = Processes.started()
    if processes.count > 1:
        # torch advises of what its DDP could leave out, in each process
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not processes.is_first:
        context = click.get_current_context()
        be_quiet(context, context.command.params[0], True)
    if held_out is not None and held_out_data is not None:
        raise DataError("--held-out takes a share of DATA, and --held-out-data brings its own: give one of them")
    parsed = read_spec(spec, variables)
    step, default = step_of(parsed), Settings()
    if step.capture and gradient_checkpointing:
        raise DataError(
            "the spec says `step capture`, and no graph holds a forward that runs again in backward: leave out "
            "`capture` or --gradient-checkpointing"
        )
    settings = Settings(
        steps=steps,
        epochs=epochs,
        batch=batch or step.batch or default.batch,
        tokens=tokens or step.tokens or default.tokens,
        accumulate=accumulate,
        pack=pack,
        schedule=schedule or "",
        warmup=warmup,
        max_grad_norm=max_grad_norm,
        held_out=default.held_out if held_out is None else held_out,
        evaluate_every=evaluate_every,
        save_every=save_every,
        gradient_checkpointing=gradient_checkpointing,
        capture=step.capture,
        seed=seed,
        goes_on=on_failed_checkpoint == "go-on",
        processes=processes.count,
    )
    reference = ModelReference(model, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    plugins = default_plugins()
    job = Job(parsed, reference, Path(output), with_base, force, calibration, calibration_rows)
    reading = Reading(read_columns(columns, plugins) if columns else {}, max_left_out)
    training = Training(
        data, settings, loss, sample, resume, reading, held_out_data, lr, weight_decay, chosen_reports(report or ""),
        Path(plot) if plot else None, shlex.join(["lorakit", *sys.argv[1:]]), processes,
    )  # fmt: skip
    display = Display(console(stderr=True), say)
    outcome = train_adapter(job, training, plugins, display, reporter())
    if outcome.stopped:
        say(f"stopped after step {outcome.steps}; --resume goes on from there")
        raise SystemExit(SIGNALLED + outcome.stopped)
