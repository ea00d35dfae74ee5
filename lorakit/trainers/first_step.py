"""Every adapted model is looked at once it trains, in whatever loop or trainer, and a trainer once it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.awaiting import once_loaded
from lorakit.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from lorakit.planning.plan import Plan


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
    # who trains by another loop does not wait for these
    once_loaded("transformers.trainer", _meet_trainers)
    once_loaded("peft.tuners.tuners_utils", _meet_tuners)


def _meet_trainers(module: Any) -> None:
    """Have every Trainer that is made from now on look at its model first."""
    from lorakit.trainers.plain_saving import AdaptersAlone
    from lorakit.trainers.references import NoSecondModel
    from lorakit.trainers.whole_checkpoints import WholeAlone

    module.DEFAULT_CALLBACKS += [NoSecondModel, AdaptersAlone, WholeAlone]


def _meet_tuners(module: Any) -> None:
    """Have PEFT put its adapters on no model that is adapted."""
    from lorakit.trainers import foreign_adapters

    foreign_adapters.refuse(module)


@hookimpl
def lorakit_model_merged(model: nn.Module) -> None:
    from lorakit.application import checksums
    from lorakit.trainers import learning

    learning.let_alone(model)
    checksums.forget(model)
