"""What a log says of steps in which memory ran out or optimizer state moved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lorakit.paging import Paged, Traffic
from lorakit.planning.report import show_bytes
from lorakit.stepping.ladder import Climb
from lorakit.trainers.settings import Record


class Needs:
    """Tells what was needed since it was asked last: of a ladder's climbs, and of pages of an optimizer's state."""

    def __init__(self, climbs: Sequence[Climb], optimizer: Callable[[], Any]) -> None:
        self._climbs = climbs
        self._optimizer = optimizer
        self._told = 0
        self._moved = Traffic()

    def since(self) -> dict[str, float]:
        """Return the highest rung, bytes and milliseconds of all, what was paged, and the wait for it; no zeros."""
        climbs = self._climbs[self._told :]
        self._told = len(self._climbs)
        # accelerate wraps it
        optimizer = self._optimizer()
        optimizer = getattr(optimizer, "optimizer", optimizer) if not isinstance(optimizer, Paged) else optimizer
        before, now = self._moved, optimizer.traffic if isinstance(optimizer, Paged) else Traffic()
        self._moved = now
        found = {
            "rung": int(max((one.rung for one in climbs), default=0)),
            "rung_bytes": sum(one.bytes for one in climbs),
            "rung_milliseconds": round(sum(one.milliseconds for one in climbs), 3),
            "paged_in_bytes": now.bytes_in - before.bytes_in,
            "paged_out_bytes": now.bytes_out - before.bytes_out,
            "paged_stalled_milliseconds": round(1000 * (now.stalled - before.stalled), 3),
        }
        return {name: value for name, value in found.items() if value}


def needs_words(history: Sequence[Record]) -> str:
    """Return in words what the steps of a history needed, to go behind other words; nothing if they needed nothing."""

    def total(name: str) -> float:
        return sum(record.get(name, 0) for record in history)

    words = ""
    if steps := sum("rung" in record for record in history):
        words += f"; memory ran out in {steps} steps, which took {total('rung_milliseconds'):,.0f} ms more"
    if total("paged_out_bytes"):
        words += (
            f"; optimizer state paged, {show_bytes(total('paged_in_bytes'))} in and "
            f"{show_bytes(total('paged_out_bytes'))} out, with {total('paged_stalled_milliseconds'):,.0f} ms of waiting"
        )
    return words
