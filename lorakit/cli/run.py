"""`lorakit run`: a training script as it is, with its model adapted when it is loaded."""

from __future__ import annotations

import click

from lorakit.cli import options
from lorakit.cli.help import command


@command("run")
@options.spec
@click.argument(
    "words",
    metavar="COMMAND",
    nargs=-1,
    required=True,
    type=click.UNPROCESSED,
    help="Behind `--`: a script with its arguments, `-m MODULE`, or a launcher such as accelerate launch or torchrun.",
)
@click.option(
    "-o", "--output", type=options.ANY_PATH, metavar="OUT", help="Write the adapter there too, when the script ends."
)
@options.variables
@click.option(
    "--only", metavar="CLASS", help="Class of the model to adapt; the first that the spec fits, unless given."
)
@options.seed
@options.force
@options.quiet
def run(
    spec: str,
    words: tuple[str, ...],
    output: str | None,
    variables: tuple[str, ...],
    only: str | None,
    seed: int,
    force: bool,
) -> None:
    """Run a training script unchanged, and adapt its model when transformers loads it.

    The first model that comes from `from_pretrained` or `from_config` and that the spec fits is adapted; others, such
    as a reference, stay as they are. A trainer that is given no optimizer takes the spec's. What of the spec is not in
    force is said. An optimizer that trains another model than the adapted one is an error at its first step.

    The end says what was adapted, which optimizer ran and where the adapter lies. The exit code is the script's, or 1
    where nothing was adapted. Under torchrun: torchrun --nproc-per-node 2 -m lorakit run SPEC -- train.py

    Example: lorakit run qlora.lora -- train.py --model ./SmolLM2-135M
    """
    import os
    import sys
    from pathlib import Path

    from lorakit.cli.inputs import read_spec
    from lorakit.cli.terminal import DONE, WORK_FAILED, is_quiet
    from lorakit.errors import DataError
    from lorakit.running.asked import Asked
    from lorakit.running.command import ending, run_command

    if output is not None:
        from lorakit.artifacts.folders import check_output

        check_output(Path(output), force)
        # a script may change its folder
        output = str(Path.cwd() / output)
    if spec == "-":
        raise DataError("`-` is the script's standard input here: give the spec as a file")
    # what is wrong with it is said before anything starts
    read_spec(spec, variables)
    asked = Asked(str(Path(spec).absolute()), variables, seed, only, output, force, is_quiet())
    code, told = run_command(words, asked)
    # what a script prints may be read by another program; and of several processes of a launcher one speaks
    if not is_quiet() and os.environ.get("RANK", "0") == "0":
        sys.stderr.write("".join(f"lorakit: {line}\n" for line in ending(told)))
    is_written = output is None or any(one.rank or one.saved == output for one in told)
    is_done = is_written and any(one.adapted for one in told)
    raise SystemExit(code or (DONE if is_done else WORK_FAILED))
