"""What a plan says of the training itself: the optimizer as the run changes it, and every setting in words."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from lorakit.errors import DataError
from lorakit.hooks.manager import Plugins
from lorakit.planning.plan import Memory, Plan
from lorakit.trainers.schedules import chosen
from lorakit.trainers.settings import Settings

if TYPE_CHECKING:
    from torch import nn


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
    several = settings.processes > 1
    limit = f"at most {settings.max_grad_norm:g}" if settings.max_grad_norm else "without a limit"
    words = (
        f"schedule {schedule}",
        f"warmup {settings.warmup}",
        f"lr {plan.optimizer.lr:g}",
        *([] if decay is None else [f"weight decay {decay:g}"]),
        f"batch {settings.batch} × accumulation {settings.accumulate}" + f" × {settings.processes} processes" * several,
        f"gradient norm {limit}",
        f"packing {'on' if settings.pack else 'off'}",
        f"gradient checkpointing {_checkpointing(plan.memory)}",
        *([_captured()] if settings.capture else []),
        f"seed {settings.seed}",
    )
    return f"training: {', '.join(words)}"


def _checkpointing(memory: Memory) -> str:
    if not memory.recomputed:
        return "off"
    count = len(memory.recomputed)
    return "on" if count == memory.blocks else f"for {count} of {memory.blocks} blocks"


def _captured() -> str:
    import torch

    if not torch.cuda.is_available():
        return "not captured: that is for CUDA devices"
    return "forward and backward captured as CUDA graphs, blocks compiled before where the model has some"


def shortage_words(structure: nn.Module, plan: Plan, *, is_text: bool) -> str:
    """Return what steps do where memory runs out, and why they do not split a batch, if they cannot."""
    from lorakit.stepping.losses import OwnLoss, PairLoss, refused, several_processes

    if why := several_processes():
        return f"where memory runs out: nothing is tried again, for {why}"
    dropping = next((entry.path for entry in plan.entries if entry.adapter and entry.adapter.settings.dropout), None)
    if dropping is None:
        why = refused(
            structure, OwnLoss(structure) if is_text else PairLoss(lambda output, target: output), training=True
        )
    else:
        why = f"the dropout of `{dropping}` draws otherwise for parts of a batch than for the whole"
    last = f"not in parts, for {why}" if why else "and last in parts of the batch, with its gradients up to rounding"
    return (
        f"where memory runs out: a step is done again, then with saved tensors in CPU memory, to the same bits; {last}"
    )
