"""How the learning rate goes over a run: up in the warm-up, then as the schedule says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from lorakit.errors import DataError

# every schedule, and how transformers calls it with a warm-up in front
SCHEDULES: Mapping[str, str] = {
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_restarts": "cosine_with_restarts",
    "polynomial": "polynomial",
    "constant": "constant_with_warmup",
    "inverse_sqrt": "inverse_sqrt",
}
# the share of the learning rate after a share of the steps behind the warm-up
PLAIN: Mapping[str, Callable[[float], float]] = {
    "linear": lambda gone: max(0.0, 1.0 - gone),
    "cosine": lambda gone: 0.5 * (1.0 + math.cos(math.pi * min(1.0, gone))),
    "constant": lambda gone: 1.0,
}


def chosen(asked: str, constant_lr: bool) -> str:
    """Return the schedule of a run: what was asked for, or linear, or constant for an optimizer that wants it so.

    Raises: DataError where the two exclude each other.
    """
    if asked and constant_lr and asked != "constant":
        raise DataError(f"--schedule {asked}: this optimizer is made for a rate that stays; leave --schedule out")
    return asked or ("constant" if constant_lr else "linear")


def share(schedule: str, done: int, steps: int, warmup: int) -> float:
    """Return what the learning rate of the step after `done` ones is multiplied with.

    Source: transformers' optimization.py, whose warm-up begins at 0 where this one begins at 1 / warmup.
    """
    if done < warmup:
        return (done + 1) / warmup
    return PLAIN[schedule]((done - warmup) / max(1, steps - warmup))
