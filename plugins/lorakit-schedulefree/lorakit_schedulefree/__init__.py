"""`schedulefree`: AdamW without a learning-rate schedule, from the package of its authors."""

from __future__ import annotations

from lorakit import hookimpl
from lorakit.hooks import OptimizerFactory
from lorakit_schedulefree.adamw import ScheduleFree

__all__ = ["ScheduleFree", "lorakit_optimizers"]


@hookimpl
def lorakit_optimizers() -> list[type[OptimizerFactory]]:
    return [ScheduleFree]
