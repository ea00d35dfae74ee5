"""The ladder: what a step does where memory runs out, rung by rung, until it is done or nothing is left to try."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import nn

from lorakit.planning.report import show_bytes
from lorakit.stepping.batches import elements_of, halves, rows_of
from lorakit.stepping.before import Before
from lorakit.stepping.sending import Sending
from lorakit.stepping.shortage import free_caches, is_shortage, let_go, retried

# forward and backward of a batch, its loss weighed by a share; returns the weighed loss, a number or a tensor of one
Run = Callable[[Any, float], Any]


class Rung(IntEnum):
    """How a batch is computed; each rung does what those below it do. Only SPLIT gives other bits than the ground."""

    GROUND = 0
    AGAIN = 1
    PAGE = 2
    SEND = 3
    SPLIT = 4


@dataclass(frozen=True, slots=True)
class Climb:
    """A batch that needed a rung: bytes that it freed, paged out or sent, and the time of all tries but the first.

    It is 0 where the rung was known to be needed: nothing was tried in vain.
    """

    rung: Rung
    bytes: int
    milliseconds: float
    rows: int


class Ladder:
    """Computes batches of one model, and once more where memory runs out, each time in a way that needs less.

    `whole` says why a batch cannot be split, `refused` why nothing is tried again at all; empty where it is. `page_out`
    sends optimizer state to the CPU's memory and returns the bytes. `say` gets a line the first time that a rung is
    needed; `climbs` keeps them all. What a batch of some size needed, a larger one is given at once.
    """

    def __init__(
        self,
        model: nn.Module,
        whole: Callable[[], str],
        *,
        refused: str = "",
        page_out: Callable[[], int] | None = None,
        advice: str = "",
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._model = model
        self._whole = whole
        self._refused = refused
        self._page_out = page_out
        self._advice = advice
        self._say = say
        self._needed: dict[Rung, int] = {}
        self._said: set[Rung] = set()
        self.climbs: list[Climb] = []

    def take(self, batch: Any, run: Run, count: Callable[[Any], int], share: float = 1.0) -> Any:
        """Leave the gradients of a batch's loss, weighed by a share, and return that loss.

        `count` tells what a part of a batch counts for in its mean. Everything that forward and backward change is as
        before where the batch does not fit however it is computed. Raises: what ran out, with advice as its note.
        """
        if self._refused:
            return run(batch, share)
        size = elements_of(batch)
        rung = max((one for one, least in self._needed.items() if least <= size), default=Rung.GROUND)
        moved = self._paged() if rung >= Rung.PAGE else 0
        before: Before | None = None
        began, failed = time.perf_counter(), 0.0
        while True:
            sending = Sending()
            try:
                before = before or Before.of(self._model)
                loss = self._computed(rung, batch, run, count, share, before, sending)
                break
            except Exception as error:
                if not is_shortage(error):
                    raise
                ended = error
            let_go(ended)
            if before is not None:
                before.restore()
            failed = failed or time.perf_counter() - began
            moved = free_caches(thoroughly=rung > Rung.GROUND)
            rung, paged = self._above(rung, batch, ended)
            moved = paged or moved
        if rung > Rung.GROUND:
            took = 1000 * (time.perf_counter() - began - failed) if failed else 0.0
            self._note(Climb(rung, sending.bytes or moved, took, rows_of(batch)), size)
        return loss

    def _computed(
        self,
        rung: Rung,
        batch: Any,
        run: Run,
        count: Callable[[Any], int],
        share: float,
        before: Before,
        sending: Sending,
    ) -> Any:
        if rung < Rung.SEND:
            return run(batch, share)
        if rung is Rung.SEND:
            with sending.around(self._model):
                return run(batch, share)
        parts = halves(batch)
        counts = retried(lambda: [count(part) for part in parts])
        losses = []
        for part, counted in zip(parts, counts, strict=True):
            # nothing to learn in it: its mean would be of nothing
            if counted:
                losses.append(self.take(part, run, count, share * counted / sum(counts)))
                if retried(lambda: before.generators.have_moved() or before.buffers_changed()):
                    raise torch.OutOfMemoryError(
                        "out of memory, and the batch cannot be split: its forward draws random numbers, or changes "
                        "buffers, otherwise for a part than for the whole"
                    )
        return retried(lambda: sum(losses))

    def _above(self, rung: Rung, batch: Any, error: Exception) -> tuple[Rung, int]:
        """Return the next rung that there is, and the bytes paged out on the way to it. Raises: the error."""
        if rung < Rung.AGAIN:
            return Rung.AGAIN, 0
        if rung < Rung.PAGE and (paged := self._paged()):
            return Rung.PAGE, paged
        if rung < Rung.SEND:
            return Rung.SEND, 0
        if rung < Rung.SPLIT and rows_of(batch) > 1 and not self._whole():
            return Rung.SPLIT, 0
        if not hasattr(error, "__notes__"):
            error.add_note(self.ending(rows_of(batch)))
        raise error

    def ending(self, rows: int) -> str:
        """Return what was tried for a batch of so many rows, and what to change."""
        split = self._whole() or ("it is one row" if rows == 1 else "" if rows else "its rows are not to be told apart")
        tried = "ran again, with saved tensors in CPU memory" + (f"; not split: {split}" if split else ", and split")
        return f"the step does not fit: it {tried}. {self._advice}".strip()

    def _paged(self) -> int:
        return self._page_out() if self._page_out is not None else 0

    def _note(self, climb: Climb, size: int) -> None:
        self.climbs.append(climb)
        if climb.rung > Rung.AGAIN:
            self._needed[climb.rung] = min(size, self._needed.get(climb.rung, size))
        if climb.rung not in self._said:
            self._said.add(climb.rung)
            self._say(f"out of memory in a batch of {climb.rows} rows: {_DONE[climb.rung](climb)}")


_DONE: Mapping[Rung, Callable[[Climb], str]] = {
    Rung.AGAIN: lambda one: f"{show_bytes(one.bytes)} of caches given back, and computed again ({_ms(one)})",
    Rung.PAGE: lambda one: f"{show_bytes(one.bytes)} of optimizer state paged out, and computed again ({_ms(one)})",
    Rung.SEND: lambda one: f"{show_bytes(one.bytes)} of saved tensors sent to CPU memory ({_ms(one)})",
    Rung.SPLIT: lambda one: f"computed in parts, weighed by what each learns ({_ms(one)})",
}


def _ms(climb: Climb) -> str:
    return f"{climb.milliseconds:,.0f} ms more"
