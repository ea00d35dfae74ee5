"""RWKV 4 halves what flows through it every few blocks, and divides frozen weights in place to make up for it.

transformers does so in evaluation mode alone, against overflow in fp16 (`config.rescale_every`). What an adapter adds
to a divided weight is not divided, so the division stays off for as long as adapters are on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lorakit.errors import ModelError
from lorakit.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from lorakit.planning.plan import Plan

NOTE = (
    "RWKV divides weights in place for evaluation, which reaches no adapter: `config.rescale_every` is 0 while "
    "adapters are on, which changes nothing but the largest values in fp16"
)
KEPT = "lorakit_rescale_every"


@hookimpl
def lorakit_plan_ready(plan: Plan) -> Plan | None:
    return replace(plan, notes=(*plan.notes, NOTE)) if plan.model_class.startswith("Rwkv") else None


@hookimpl
def lorakit_before_apply(model: nn.Module, plan: Plan) -> None:
    for part in _rescaling(model):
        if not part.layers_are_rescaled:
            continue
        if not part.blocks[0].attention.output.weight.is_floating_point():
            raise ModelError(
                "this RWKV was run in evaluation mode, which divided its quantized weights: load it again, and "
                "adapt it before it runs"
            )
        mode, part.training = part.training, True
        part._rescale_layers()
        part.training = mode


@hookimpl
def lorakit_model_ready(model: nn.Module, plan: Plan) -> None:
    for part in _rescaling(model):
        if not hasattr(part, KEPT):
            setattr(part, KEPT, part.config.rescale_every)
            part.config.rescale_every = 0


@hookimpl
def lorakit_model_merged(model: nn.Module) -> None:
    for part in _rescaling(model):
        if hasattr(part, KEPT):
            part.config.rescale_every = getattr(part, KEPT)
            delattr(part, KEPT)
            # an evaluation pass of the adapted model said that it divided, and did not
            part.layers_are_rescaled = False


def _rescaling(model: nn.Module) -> Iterator[Any]:
    return (part for part in model.modules() if hasattr(part, "_rescale_layers"))
