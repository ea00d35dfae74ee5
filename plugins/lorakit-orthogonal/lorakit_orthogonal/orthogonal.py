"""`orthogonal`: A and B both start non-zero, and B·A is zero all the same."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from lorakit.hooks import StartContext


@dataclass(frozen=True)
class Orthogonal:
    """A and B from two halves of one random orthogonal matrix: both learn from the first step, and B·A = 0.

    Where Q (rank, rank) is orthogonal, its odd rows P and its even rows R have R · Pᵀ = 0.
    With Gaussian G and H, A = scale · Pᵀ · G and B = scale · H · R, so B·A = scale² · H · R · Pᵀ · G = 0.
    Source: PEFT's init_lora_weights="orthogonal" (even ranks), after https://datta0.github.io/posts/rethink-lora-init/.
    """

    name: ClassVar[str] = "orthogonal"
    scale: float = field(default=0.1, metadata={"help": "multiplies both matrices"})

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError("scale must be a positive number")

    def initialize(self, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
        """Fill lora_A (rank, inputs) and lora_B (outputs, rank); at rank 1 there is no even row, and B is zero."""
        import torch

        rank, inputs = lora_A.shape
        generator = context.generator
        basis, _ = torch.linalg.qr(torch.randn(rank, rank, generator=generator))
        odd, even = basis[0::2], basis[1::2]
        lora_A.copy_(self.scale * (odd.T @ torch.randn(len(odd), inputs, generator=generator)))
        lora_B.copy_(self.scale * (torch.randn(len(lora_B), len(even), generator=generator) @ even))
