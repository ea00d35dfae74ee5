"""The spec's optimizer for a trainer that makes its optimizer itself, once it has wrapped or sharded the model."""

from __future__ import annotations

import torch
from torch import nn

from lorakit.application.optimizer import build_optimizer


class SpecOptimizer:
    """Makes the spec's optimizer where transformers' Trainer takes a factory, as `optimizer_cls_and_kwargs`.

    `Trainer(…, optimizer_cls_and_kwargs=(lorakit.SpecOptimizer, {}))` does what `optimizers=(lorakit.optimizer(model),
    None)` does, and also where Trainer refuses that: under FSDP, and with `model_init`. The arguments are those of
    `lorakit.optimizer`.
    """

    def __call__(self, model: nn.Module, lr: float | None = None) -> torch.optim.Optimizer:
        """Return the optimizer. Raises: ModelError."""
        return build_optimizer(model, lr)
