"""`loftq`: A and B begin as the best approximation of what quantizing the weight lost.

Source: Li et al. 2023, "LoftQ", arXiv:2310.08659, algorithm 1 with one step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from lorakit.hooks import StartContext


@dataclass(frozen=True)
class LoftQ:
    """A and B from the largest singular values of W₀ minus what is stored, so that training begins nearer to W₀.

    B · A · alpha / rank is the part of the first `rank` values, each matrix with the root of them. The base stores W₀
    as it would without: steps beyond the first would store another. Where nothing is lost, A is Gaussian, B zero.
    """

    name: ClassVar[str] = "loftq"
    changes_start: ClassVar[bool] = True

    def initialize(self, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
        """Fill lora_A (rank, inputs) and lora_B (outputs, rank)."""
        import torch

        if context.scaling <= 0:
            raise ValueError(f"the update is scaled by {context.scaling:g}, and makes up for nothing")
        lost, rank = context.weight() - context.stored_weight(), len(lora_A)
        if not lost.any():
            lora_A.normal_(std=context.fan_in**-0.5, generator=context.generator)
            lora_B.zero_()
            return
        left, values, right = torch.linalg.svd(lost, full_matrices=False)
        roots = (values[:rank] / context.scaling).sqrt()
        lora_A.copy_(roots[:, None] * right[:rank])
        lora_B.copy_(left[:, :rank] * roots)
