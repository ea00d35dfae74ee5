"""The `lorakit` command."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import cast

import click

from lorakit.cli import complete, project, shells
from lorakit.cli.help import Group, command, group
from lorakit.cli.terminal import BAD_INPUT, INTERRUPTED, SIGNALLED, WORK_FAILED, fail
from lorakit.encoding import ERRORS
from lorakit.errors import LorakitError, TrainingError, WriteError
from lorakit.version import __version__

# in the order in which help shows them
COMMANDS = (
    "init", "check", "fmt", "explain", "plan", "diff", "apply", "train", "run", "chat", "merge", "export", "inspect",
    "lsp", "demo", "plugins",
)  # fmt: skip


# these read no model, so they load no library that talks
SILENT = ("check", "fmt", "explain", "run")


def command_named(name: str) -> click.Command:
    """Return a command out of the module of its name, which loads now."""
    if name not in SILENT:
        _silence_libraries()
    return cast(click.Command, getattr(importlib.import_module(f"lorakit.cli.{name}"), name))


def _silence_libraries() -> None:
    import logging

    # they tell of optional kernels that they did not find; transformers imports torchao wherever it is installed
    for library in ("bitsandbytes", "torchao", "torch.utils._pytree"):
        logging.getLogger(library).setLevel(logging.ERROR)


class Commands(Group):
    """The commands, of which only that loads which is called: they are many, and each takes its time."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *self.commands.keys() - set(COMMANDS)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        # what stands for a name that there is not is looked for among them all
        for one in (name,) if name in self.list_commands(ctx) else COMMANDS:
            if one not in self.commands:
                self.commands[one] = command_named(one)
        return self.commands.get(name)


def _choose_plugins(context: click.Context, parameter: click.Parameter, none: bool) -> None:
    if none:
        # in the environment, so that processes which a command starts choose alike
        os.environ["LORAKIT_PLUGINS"] = ""


@group(
    "lorakit",
    cls=Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(
    __version__, "-V", "--version", message="lorakit %(version)s", help="Print the version and leave."
)
@click.option(
    "--no-plugins",
    is_flag=True,
    expose_value=False,
    callback=_choose_plugins,
    help="Load the built-ins alone; LORAKIT_PLUGINS=a,b chooses distributions.",
)
@shells.options
@click.pass_context
def app(context: click.Context) -> None:
    """A small language for low-rank fine-tuning: check it, see the plan, apply it, train, merge.

    Example: lorakit demo
    """
    name = context.invoked_subcommand
    if name is not None and (chosen := cast(Commands, context.command).get_command(context, name)) is not None:
        context.default_map = {name: project.defaults(chosen, name, Path.cwd())}


@command("help")
@click.argument(
    "words",
    metavar="COMMAND",
    nargs=-1,
    shell_complete=complete.commands,
    help="A command, such as plan, or two, such as plugins new.",
)
def help_(words: tuple[str, ...]) -> None:
    """Show what a command does and takes, as its --help does.

    Example: lorakit help plan
    """
    app.main([*words, "--help"], prog_name="lorakit", standalone_mode=False)


app.add_command(help_)


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
    if not sys.stderr.isatty():
        # the libraries' own progress bars
        os.environ.setdefault("TQDM_DISABLE", "1")
    # what a file said may hold what the encoding has not
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)
    try:
        with _terminable():
            raise SystemExit(app.main(prog_name="lorakit", standalone_mode=False) or 0)
    except LorakitError as error:
        fail(str(error), BAD_INPUT)
    except (TrainingError, WriteError) as error:
        fail(str(error), WORK_FAILED)
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except (click.Abort, KeyboardInterrupt):
        fail("interrupted", INTERRUPTED)
    except Terminated as end:
        fail(f"ended by {end.signal.name}", SIGNALLED + end.signal)
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(WORK_FAILED) from None
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), WORK_FAILED)
    except Exception as error:
        from lorakit.processes import is_gone, speaks

        if not speaks():
            raise SystemExit(WORK_FAILED) from None
        if is_gone(error):
            fail(
                "another of the processes that train together has ended, and said nothing; was it killed?", WORK_FAILED
            )
        raise
