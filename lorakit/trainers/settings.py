"""How a run trains, and what came of it, whichever trainer does the work."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train.

    `steps` of 0 takes `epochs`; `lr` replaces the optimizer's own; the `…_every` count steps, and 0 is never.
    `goes_on` where a checkpoint cannot be written.
    """

    steps: int = 0
    epochs: float = 1.0
    batch: int = 4
    tokens: int = 512
    lr: float | None = None
    warmup: int = 0
    held_out: float = 0.05
    evaluate_every: int = 0
    save_every: int = 0
    gradient_checkpointing: bool = False
    seed: int = 0
    goes_on: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What training did: held-out losses before and after (None if not measured), steps done, what stopped it.

    `stopped` is the number of a signal, or 0.
    """

    held_out_before: float | None
    held_out_after: float | None
    steps: int
    stopped: int
