"""What a trainer counts for its log, such as tokens and sums of metrics: a try that failed does not count."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def uncounted(trainer: Any, *, always: bool = False) -> Iterator[None]:
    """Have the numbers that a trainer keeps after the block as before it, where it fails, or `always`.

    They are those among its attributes, and in dicts and lists of numbers there.
    """
    held = vars(trainer)
    before = {name: copy.deepcopy(value) for name, value in held.items() if _counts(value)}
    restores = True
    try:
        yield
        restores = always
    finally:
        if restores:
            held.update({name: value for name, value in before.items() if held.get(name) != value})


def _counts(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_counts, value.values()))
    return isinstance(value, int | float) or (
        isinstance(value, list) and all(isinstance(v, int | float) for v in value)
    )
