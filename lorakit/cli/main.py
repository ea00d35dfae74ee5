"""The `lorakit` command."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from lorakit.cli import (
    apply,
    chat,
    check,
    complete,
    demo,
    diff,
    explain,
    export,
    fmt,
    init,
    inspect,
    lsp,
    merge,
    plan,
    plugins,
    train,
)
from lorakit.cli.help import Command, Group, help_of
from lorakit.cli.terminal import BAD_INPUT, INTERRUPTED, SIGNALLED, WORK_FAILED, fail
from lorakit.encoding import ERRORS
from lorakit.errors import LorakitError, TrainingError, WriteError

app = typer.Typer(
    name="lorakit",
    cls=Group,
    help="A small language for low-rank fine-tuning: check it, see the plan, apply it, train, merge.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (init, check, fmt, explain, plan, diff, apply, train, chat, merge, export, inspect, lsp, demo):
    name = command.__name__.rpartition(".")[2]
    function = getattr(command, name)
    app.command(name, cls=Command, help=help_of(function))(function)
app.add_typer(plugins.app, name="plugins")


@app.command("help", cls=Command)
def help_(
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND",
            help="A command, such as plan, or two, such as plugins new.",
            autocompletion=complete.commands,
        ),
    ] = [],  # noqa: B006
) -> None:
    """Show what a command does and takes, as its --help does.

    Example: lorakit help plan
    """
    app([*command, "--help"], prog_name="lorakit")


@app.callback(invoke_without_command=True)
def everywhere(
    version: bool = typer.Option(False, "--version", "-V", help="Print the version and leave."),
    no_plugins: bool = typer.Option(
        False, "--no-plugins", help="Load the built-ins alone; LORAKIT_PLUGINS=a,b chooses distributions."
    ),
) -> None:
    if no_plugins:
        # in the environment, so that processes which a command starts choose alike
        os.environ["LORAKIT_PLUGINS"] = ""
    if version:
        import lorakit

        sys.stdout.write(f"lorakit {lorakit.__version__}\n")
        raise typer.Exit


class Terminated(BaseException):
    """A signal that ends a process: what was begun is cleared away on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = signal.Signals(number)


@contextmanager
def _terminable() -> Iterator[None]:
    def leave(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    ending = (signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
    # what is ignored stays so, as under nohup
    before = {one: signal.signal(one, leave) for one in ending if signal.getsignal(one) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def main() -> None:
    """Run the command line; every failure that a user can cause is one message and an exit code, never a traceback."""
    # they tell of optional kernels that they did not find; transformers imports torchao wherever it is installed
    for library in ("bitsandbytes", "torchao", "torch.utils._pytree"):
        logging.getLogger(library).setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        # the libraries' own progress bars
        os.environ.setdefault("TQDM_DISABLE", "1")
    # what a file said may hold what the encoding has not
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)
    try:
        with _terminable():
            app(prog_name="lorakit")
    except LorakitError as error:
        fail(str(error), BAD_INPUT)
    except (TrainingError, WriteError) as error:
        fail(str(error), WORK_FAILED)
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)
    except Terminated as end:
        fail(f"ended by {end.signal.name}", SIGNALLED + end.signal)
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(WORK_FAILED) from None
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), WORK_FAILED)
