"""The `lorakit` command."""

from __future__ import annotations

import importlib
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer

from lorakit.cli import complete
from lorakit.cli.help import Command, Group, help_of
from lorakit.cli.terminal import BAD_INPUT, INTERRUPTED, SIGNALLED, WORK_FAILED, fail
from lorakit.encoding import ERRORS
from lorakit.errors import LorakitError, TrainingError, WriteError

# in the order in which help shows them
COMMANDS = (
    "init", "check", "fmt", "explain", "plan", "diff", "apply", "train", "chat", "merge", "export", "inspect", "lsp",
    "demo", "plugins",
)  # fmt: skip


def command_named(name: str) -> Any:
    """Return a command of the module of its name, which loads now; a group of commands stands there as `app`."""
    module = importlib.import_module(f"lorakit.cli.{name}")
    if (group := getattr(module, "app", None)) is not None:
        return typer.main.get_command(group)
    function = getattr(module, name)
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    alone.command(name, cls=Command, help=help_of(function))(function)
    return typer.main.get_command(alone)


class Commands(Group):
    """The commands, of which only that loads which is called: they are many, and each takes its time."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*COMMANDS, *(name for name in super().list_commands(ctx) if name not in COMMANDS)]

    def get_command(self, ctx: Any, name: str) -> Any:
        # what stands for a name that there is not is looked for among them all
        for one in (name,) if name in self.list_commands(ctx) else COMMANDS:
            if one not in self.commands:
                self.commands[one] = command_named(one)
        return self.commands.get(name)


app = typer.Typer(
    name="lorakit",
    cls=Commands,
    help="A small language for low-rank fine-tuning: check it, see the plan, apply it, train, merge.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
