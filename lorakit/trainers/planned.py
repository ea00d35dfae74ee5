"""What a plan says of the training itself: the optimizer as the run changes it, and every setting in words."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from lorakit.errors import DataError
from lorakit.hooks.manager import Plugins
from lorakit.planning.plan import Plan
from lorakit.trainers.schedules import chosen
from lorakit.trainers.settings import Settings


def optimized(plan: Plan, plugins: Plugins, *, lr: float | None, weight_decay: float | None) -> Plan:
    """Return a plan whose optimizer has another learning rate or weight decay, where they are given.

    Raises: DataError if the optimizer has no weight decay.
    """
    optimizer = plan.optimizer
    call = optimizer.call
    if weight_decay is not None:
        factory: Any = plugins.optimizer(call)
        if "weight_decay" not in {one.name for one in fields(factory)}:
            raise DataError(f"--weight-decay: the optimizer {call.name} has none")
        call = replace(call, options=tuple(({**dict(call.options), "weight_decay": weight_decay}).items()))
    return replace(plan, optimizer=replace(optimizer, call=call, lr=optimizer.lr if lr is None else lr))


def training_words(plan: Plan, plugins: Plugins, settings: Settings) -> str:
    """Return how a run trains, with what was not said too. Raises: DataError if the schedule does not fit."""
    factory = plugins.optimizer(plan.optimizer.call)
    schedule = chosen(settings.schedule, bool(getattr(factory, "constant_lr", False)))
    decay = getattr(factory, "weight_decay", None)
    limit = f"at most {settings.max_grad_norm:g}" if settings.max_grad_norm else "without a limit"
    words = (
        f"schedule {schedule}",
        f"warmup {settings.warmup}",
        f"lr {plan.optimizer.lr:g}",
        *([] if decay is None else [f"weight decay {decay:g}"]),
        f"batch {settings.batch} × accumulation {settings.accumulate}",
        f"gradient norm {limit}",
        f"packing {'on' if settings.pack else 'off'}",
        f"gradient checkpointing {'on' if settings.gradient_checkpointing else 'off'}",
        f"seed {settings.seed}",
    )
    return f"training: {', '.join(words)}"
