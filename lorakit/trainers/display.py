"""What a training run shows: a progress bar for a person, a line for each held-out loss for everyone."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# Ctrl-C, what schedulers send before they kill, and a terminal that closes
STOPPING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


class StopAsked:
    """The signal that asked for a clean stop, or 0; a second one does what it does without a trainer."""

    def __init__(self) -> None:
        self.signal = 0


class Display:
    """Shows a run on a terminal; `say` prints lines that stay."""

    def __init__(self, terminal: Console, say: Callable[[str], None]) -> None:
        self._terminal = terminal
        self._say = say
        self._progress: Progress | None = None
        self._steps = 0
        self.stop = StopAsked()

    @contextmanager
    def running(self, steps: int) -> Iterator[StopAsked]:
        """Show a bar of so many steps, and turn the first signal to stop into one after the current step."""
        self._steps = steps
        columns = (
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        with (
            _interrupts(self.stop, self._say),
            Progress(
                *columns, console=self._terminal, transient=True, disable=not self._terminal.is_terminal
            ) as progress,
        ):
            self._progress = progress
            progress.add_task("training", total=steps, loss="…")
            yield self.stop
        self._progress = None

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Show a spinner with the elapsed time while something of unknown length runs."""
        columns = (SpinnerColumn(), TextColumn(what), TimeElapsedColumn())
        shown = self._terminal.is_terminal and self._progress is None
        with Progress(*columns, console=self._terminal, transient=True, disable=not shown) as progress:
            progress.add_task(what, total=None)
            yield

    def warn(self, line: str) -> None:
        """Print a line that stays where errors go."""
        self._terminal.print(line, markup=False, soft_wrap=True)

    def step(self, number: int, loss: float) -> None:
        """Note that a step is done."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=number, loss=f"{loss:.3f}")

    def held_out(self, number: int, loss: float | None, *, of_tokens: bool = True) -> None:
        """Note the loss on held-out data after a step, with its perplexity where it is a mean over tokens."""
        if loss is not None:
            when = "before training" if number == 0 else f"after step {number}"
            self._say(f"held-out loss {when}: {loss:.4f}" + (f" (perplexity {perplexity(loss)})" if of_tokens else ""))


def perplexity(loss: float) -> str:
    """Return exp(loss) in four digits."""
    return f"{math.exp(loss):.4g}" if loss < 700 else "inf"


@contextmanager
def _interrupts(stop: StopAsked, say: Callable[[str], None]) -> Iterator[None]:
    def ask(number: int, frame: FrameType | None) -> None:
        if stop.signal:
            restore()
            signal.raise_signal(number)
            return
        stop.signal = number
        say("stopping after this step, with a checkpoint; once more stops at once")

    def restore() -> None:
        for one, before in previous.items():
            signal.signal(one, before)

    # what is ignored stays so, as under nohup
    caught = [one for one in STOPPING if one == signal.SIGINT or signal.getsignal(one) is not signal.SIG_IGN]
    previous = {one: signal.getsignal(one) for one in caught}
    try:
        for one in caught:
            signal.signal(one, ask)
    except ValueError:
        # not the main thread: leave signals alone
        yield
        return
    try:
        yield
    finally:
        restore()
