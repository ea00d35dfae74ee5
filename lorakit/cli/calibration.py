"""Calibration data from the command line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lorakit.cli.terminal import say, tracked

if TYPE_CHECKING:
    from torch import nn

    from lorakit.cli.tasks import Task
    from lorakit.hooks.manager import Plugins
    from lorakit.planning.plan import Plan

ROWS = 128


def calibration_batches(
    plan: Plan, model: nn.Module, plugins: Plugins, task: Task | None, data: str | None, rows: int
) -> Iterable[Any] | None:
    """Return what the model shall run over, behind a progress bar; None where nothing needs it or there is no task.

    `data` is what the user named for it, if anything: a task without it holds the training data.
    """
    from lorakit.application.observing import watched

    wanting = sorted({one.name for one in watched(plan, model, plugins)})
    if data is not None and not wanting:
        say(f"{data} is left alone: nothing in this plan needs calibration data")
    if task is None or not wanting:
        return None
    batches = task.calibration(rows)
    say(f"calibrating {', '.join(wanting)} on {len(batches)} rows of {data or 'the training data'}")
    return tracked(batches, "calibrating")
