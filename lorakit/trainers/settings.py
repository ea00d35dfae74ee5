"""How a run trains, and what came of it, whichever trainer does the work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

# what was logged after a step, named as transformers' Trainer names it: loss, learning_rate, grad_norm, eval_loss, …
Record: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train.

    `steps` of 0 takes `epochs`; the `…_every` count steps, and 0 is never. A step takes `accumulate` batches.
    `schedule` is one of `schedules.SCHEDULES`, or empty for what the optimizer is meant for. `max_grad_norm` of 0 sets
    no limit. With `pack` a row is as many records as it holds. `goes_on` where a checkpoint cannot be written. So many
    `processes` take a batch each.
    """

    steps: int = 0
    epochs: float = 1.0
    batch: int = 4
    accumulate: int = 1
    tokens: int = 512
    pack: bool = False
    schedule: str = ""
    warmup: int = 0
    max_grad_norm: float = 1.0
    held_out: float = 0.05
    evaluate_every: int = 0
    save_every: int = 0
    gradient_checkpointing: bool = False
    capture: bool = False
    seed: int = 0
    goes_on: bool = False
    processes: int = 1

    @property
    def rows(self) -> int:
        """The rows of a step."""
        return self.batch * self.accumulate * self.processes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What training did: held-out losses before and after (None if not measured), steps done, what stopped it.

    `stopped` is the number of a signal, or 0. `history` is all that was logged, of earlier parts of a resumed run too.
    `count` tokens or rows (`unit`) were learned from in `seconds`, since the last start.
    """

    held_out_before: float | None
    held_out_after: float | None
    steps: int
    stopped: int
    history: tuple[Record, ...] = ()
    count: int = 0
    unit: str = "rows"
    seconds: float = 0.0


def steps_of(settings: Settings, rows: int) -> int:
    """Return the steps of a run over so many rows; an epoch's last step may be a smaller one."""
    if settings.steps:
        return settings.steps
    return max(1, round_up(settings.epochs * steps_of_epoch(settings, rows)))


def steps_of_epoch(settings: Settings, rows: int) -> int:
    """Return the steps in which all of so many rows are learned from once."""
    batches = -(-rows // settings.batch)
    return -(-batches // (settings.accumulate * settings.processes))


def round_up(count: float) -> int:
    """Return the whole number at or above a count, which may have been multiplied with some error."""
    return int(-(-round(count, 6) // 1))
