"""Every adapted model is looked at once it trains, in whatever loop or trainer, and a trainer once it is made."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lorakit.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from lorakit.planning.plan import Plan

TRAINERS = {"transformers.trainer", "trl"}


@hookimpl
def lorakit_before_apply(model: nn.Module, plan: Plan) -> None:
    from lorakit.trainers import learning

    learning.remember(model)


@hookimpl
def lorakit_model_ready(model: nn.Module, plan: Plan) -> None:
    from lorakit.application import checksums
    from lorakit.trainers import learning

    learning.watch(model)
    if checksums.is_useful():
        checksums.remember(model)
    # who trains by another loop does not wait for it
    if TRAINERS & sys.modules.keys():
        from lorakit.trainers import references

        references.watch()


@hookimpl
def lorakit_model_merged(model: nn.Module) -> None:
    from lorakit.application import checksums
    from lorakit.trainers import learning

    learning.let_alone(model)
    checksums.forget(model)
