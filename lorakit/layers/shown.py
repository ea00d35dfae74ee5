"""The weight that an adapter shows to those who compute with it, as fused losses do with an output head."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from lorakit.errors import TrainingError


def shown(weight: Tensor, layer: nn.Module, dropout: nn.Dropout | None) -> Tensor:
    """Return a weight, of which a backward pass raises TrainingError while the layer drops some of its inputs.

    No weight shows what is dropped: who asks for its dtype may, and who learns by it would learn without dropout.
    """
    drops = dropout is not None and dropout.training and dropout.p > 0
    if drops and weight.requires_grad and not _is_traced():
        weight.register_hook(functools.partial(_refuse, layer))
    return weight


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _refuse(layer: nn.Module, gradient: Tensor) -> None:
    size = " × ".join(map(str, gradient.shape))
    raise TrainingError(
        f"the loss was computed with the weight of a layer ({type(layer).__name__}, {size}) whose adapter has dropout, "
        "instead of calling the layer, as trainers do that fuse the output head with the loss: its dropout is not in "
        "force. Leave `dropout` out for this layer, by a rule of its own, or have the trainer call it"
    )
