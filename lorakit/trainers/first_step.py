"""Every adapted model is looked at once it trains, in whatever loop or trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorakit.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from lorakit.planning.plan import Plan


@hookimpl
def lorakit_model_ready(model: nn.Module, plan: Plan) -> None:
    from lorakit.application import learning

    learning.watch(model)


@hookimpl
def lorakit_model_merged(model: nn.Module) -> None:
    from lorakit.application import learning

    learning.let_alone(model)
