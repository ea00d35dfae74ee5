"""What a training run shows: a bar on a terminal, a line every few seconds elsewhere, held-out losses everywhere."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn

from lorakit.bars import bar, spinner
from lorakit.processes import another_failed

# between two lines, where there is no terminal
SECONDS = 5.0
# Ctrl-C, what schedulers send before they kill, and a terminal that closes
STOPPING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


class StopAsked:
    """The signal that asked for a clean stop, or 0; a second one does what it does without a trainer."""

    def __init__(self) -> None:
        self.signal = 0


class Display:
    """Shows a run: a bar on a terminal; without one `say` prints a line every so many seconds, and those that stay."""

    def __init__(self, terminal: Console, say: Callable[[str], None], every: float = SECONDS) -> None:
        self._terminal = terminal
        self._say = say
        self._every = every
        self._progress: Progress | None = None
        self.stop = StopAsked()

    @contextmanager
    def running(self, steps: int, unit: str, done: int = 0) -> Iterator[StopAsked]:
        """Show a run of so many steps, and turn the first signal to stop into one after the current step.

        `unit` is what is counted, tokens or rows; `done` steps were done before.
        """
        self._pace = Pace(steps, done, unit)
        self._said = 0.0
        name, loss, rate = map(TextColumn, ("training", "{task.fields[loss]}", "{task.fields[rate]}"))
        line = bar(name, MofNCompleteColumn(), loss, rate, spare=(name, rate))
        with (
            _interrupts(self.stop, self._say),
            Progress(line, console=self._terminal, transient=True, disable=not self._terminal.is_terminal) as progress,
        ):
            self._progress = progress
            progress.add_task("training", total=steps, completed=done, loss="", rate="")
            yield self.stop
        self._progress = None

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Show a spinner with the elapsed time while something of unknown length runs."""
        shown = self._terminal.is_terminal and self._progress is None
        with Progress(spinner(what), console=self._terminal, transient=True, disable=not shown) as progress:
            progress.add_task(what, total=None)
            yield

    def warn(self, line: str) -> None:
        """Print a line that stays where errors go."""
        self._terminal.print(line, markup=False, soft_wrap=True)

    def step(self, number: int, loss: float, lr: float, count: int) -> None:
        """Note that a step is done, at this learning rate, and how many tokens or rows were seen since the start."""
        pace = self._pace
        if self._progress is not None and self._terminal.is_terminal:
            rate = pace.rate(count)
            self._progress.update(self._progress.task_ids[0], completed=number, loss=f"loss {loss:.4f}", rate=rate)
            return
        now = time.monotonic()
        if self._said and now - self._said < self._every and number < pace.steps:
            return
        self._said = now
        self._say(
            f"step {number:>{len(str(pace.steps))}}/{pace.steps}  loss {loss:.4f}  lr {lr:.3g}  "
            f"{pace.rate(count)}  left {pace.left(number)}"
        )

    def held_out(self, number: int, loss: float | None, *, is_text: bool) -> None:
        """Note the loss on held-out data after a step; a mean over tokens has a perplexity."""
        if loss is not None:
            when = "before training" if number == 0 else f"after step {number}"
            self._say(f"held-out loss {when}: {loss:.4f}{f' (perplexity {perplexity(loss)})' * is_text}")


class Pace:
    """How fast a run goes, over all of its steps since it started."""

    def __init__(self, steps: int, done: int, unit: str) -> None:
        self.steps = steps
        self._done = done
        self._unit = unit
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """The seconds since the start."""
        return time.monotonic() - self._started

    def rate(self, count: int) -> str:
        """Return so many tokens or rows as a rate."""
        return rate(count, self._unit, self.seconds)

    def left(self, number: int) -> str:
        """Return the time that the steps behind this one will take, if they go on as those before."""
        each = self.seconds / max(1, number - self._done)
        return duration(each * (self.steps - number))


def rate(count: int, unit: str, seconds: float) -> str:
    """Return a rate in words."""
    each = count / max(seconds, 1e-9)
    return f"{each:,.0f} {unit}/s" if each >= 10 else f"{each:.2g} {unit}/s"


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss, rounded up, so that nothing is left at the end alone."""
    return str(timedelta(seconds=math.ceil(seconds)))


def perplexity(loss: float) -> str:
    """Return exp(loss) in four digits."""
    return f"{math.exp(loss):.4g}" if loss < 700 else "inf"


@contextmanager
def _interrupts(stop: StopAsked, say: Callable[[str], None]) -> Iterator[None]:
    def ask(number: int, frame: FrameType | None) -> None:
        # a launcher ends the others with one that failed, and no further step comes
        if stop.signal or another_failed():
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
