"""What every command shares: how it speaks, how it fails, and how it shows that it is at work."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from lorakit.planning.plan import Plan
    from lorakit.reporter import Reporter

DONE, WORK_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
# what a shell adds to the number of a signal
SIGNALLED = 128
# pipes and log files have no width of their own
PIPE_WIDTH = 140

Item = TypeVar("Item")


def colored(stream: IO[str]) -> bool:
    """Return whether a stream is a terminal whose user lets it be written to in colour."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", "unknown")


def be_quiet(context: click.Context, parameter: click.Parameter, quiet: bool) -> None:
    """Have a command print nothing but errors, and what it is asked for as data; libraries do as it does."""
    context.meta[__name__] = quiet
    if quiet:
        import logging

        os.environ["TQDM_DISABLE"] = "1"
        context.with_resource(warnings.catch_warnings(action="ignore"))
        logging.disable(logging.WARNING)
        context.call_on_close(lambda: logging.disable(logging.NOTSET))


def is_quiet() -> bool:
    """Return whether the command at work prints nothing but errors."""
    context = click.get_current_context(silent=True)
    return context is not None and context.meta.get(__name__, False)


def console(stderr: bool = False) -> Console:
    """Return a rich console on standard output, or on standard error."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr, quiet=is_quiet(), highlight=False, soft_wrap=False,
        width=None if stream.isatty() else PIPE_WIDTH,
        # bold is an escape code too, and rich keeps it under NO_COLOR
        color_system="auto" if colored(stream) else None,
    )  # fmt: skip


def show(*parts: RenderableType) -> None:
    """Print to standard output, unless quiet; in a pipe without the blanks that fill a table's lines."""
    terminal = console()
    if terminal.is_terminal:
        terminal.print(*parts)
        return
    with terminal.capture() as captured:
        terminal.print(*parts)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def say(line: str) -> None:
    """Print a plain line to standard output, whatever brackets are in it, unless quiet."""
    if not is_quiet():
        print_data(line)


def print_data(text: str) -> None:
    """Print what was asked for as data to standard output, quiet or not."""
    sys.stdout.write(f"{text}\n")


def fail(message: str, code: int) -> NoReturn:
    """Print an error to standard error and leave with this exit code; of processes that work together one prints."""
    from lorakit.processes import speaks

    if not speaks():
        raise SystemExit(code)
    text = message if message.startswith("error") else f"error: {message}"
    paints = colored(sys.stderr) and "\n" not in text
    sys.stderr.write(f"\x1b[1;31m{text}\x1b[0m\n" if paints else f"{text}\n")
    raise SystemExit(code)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show a spinner with the elapsed time while a step of unknown length runs; nothing in a pipe or without colour."""
    terminal = console(stderr=True)
    if not colored(sys.stderr):
        yield
        return
    from rich.progress import Progress

    from lorakit.bars import spinner

    with Progress(spinner(what), console=terminal, transient=True) as progress:
        progress.add_task(what, total=None)
        yield


@contextmanager
def measured(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar while a step runs, and yield what it tells (bytes done, bytes in all); nothing in a pipe."""
    terminal = console(stderr=True)
    if not terminal.is_terminal:
        yield lambda done, total: None
        return
    from rich.progress import DownloadColumn, Progress, TextColumn

    from lorakit.bars import bar

    with Progress(bar(TextColumn(what), DownloadColumn()), console=terminal, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def tracked(items: Sequence[Item], what: str) -> Iterable[Item]:
    """Yield items behind a progress bar with elapsed and remaining time; without one in a pipe."""
    terminal = console(stderr=True)
    if not terminal.is_terminal:
        return iter(items)
    from rich.progress import MofNCompleteColumn, Progress, TextColumn

    from lorakit.bars import bar

    def behind_a_bar() -> Iterator[Item]:
        with Progress(bar(TextColumn(what), MofNCompleteColumn()), console=terminal, transient=True) as progress:
            yield from progress.track(items, description=what)

    return behind_a_bar()


def reporter(every_module: bool = False) -> Reporter:
    """Return what tells a run's course here: the plan with a row for each kind of module, or for every one."""
    from lorakit.reporter import Reporter

    def show_plan(plan: Plan) -> None:
        from lorakit.planning.report import plan_view

        show(plan_view(plan, every_module=every_module))

    return Reporter(say, show_plan, working, measured, tracked)


def print_json(value: Any) -> None:
    """Print a value as JSON to standard output, quiet or not."""
    import json

    print_data(json.dumps(value, indent=2))
