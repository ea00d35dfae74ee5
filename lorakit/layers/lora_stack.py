"""LoRA on a matrix, or a stack of them, that a module holds as one parameter, such as the experts of a mixture.

The adapter is a parametrization: whoever reads the parameter reads W₀ + scaling · BₑAₑ for every expert e.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lorakit.layers.strength import Strength, is_off, one_factor


class LoRAStack(nn.Module):
    """A change of a stacked weight (stack, rows, columns), one low-rank product for each matrix of the stack.

    Shapes, in PEFT's layout: lora_A (stack · rank, columns) and lora_B (rows, rank · stack); with `transposed`, for a
    weight that lies as (stack, in_features, out_features), lora_A is (stack · rank, rows) and lora_B (columns, …).
    """

    def __init__(
        self,
        lora_A: nn.Parameter,
        lora_B: nn.Parameter,
        *,
        stack: int,
        scaling: float,
        transposed: bool,
    ) -> None:
        super().__init__()
        self.stack = stack
        self.scaling = scaling
        self.strength: Strength = 1.0
        self.transposed = transposed
        self.lora_A = lora_A
        self.lora_B = lora_B

    def change(self, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        """Return the change of the weight that two matrices make."""
        lora_A = lora_A.view(self.stack, -1, lora_A.shape[1])
        lora_B = lora_B.view(lora_B.shape[0], -1, self.stack).permute(2, 0, 1)
        delta = self.scaling * (lora_B @ lora_A)
        delta = delta.transpose(1, 2) if self.transposed else delta
        # a stack of one is held as a matrix
        return delta if self.stack > 1 else delta[0]

    def forward(self, weight: Tensor) -> Tensor:
        """Return the effective weight (stack, rows, columns)."""
        if is_off(self.strength):
            return weight
        # in the weight's dtype, and in one pass over the stack, which is much larger than the matrices
        lora_A = self.lora_A.to(weight.dtype).view(self.stack, -1, self.lora_A.shape[1])
        lora_B = self.lora_B.to(weight.dtype).view(self.lora_B.shape[0], -1, self.stack).permute(2, 0, 1)
        first, second = (lora_A.mT, lora_B.mT) if self.transposed else (lora_B, lora_A)
        stacked = weight.view(self.stack, *weight.shape[-2:])
        factor = self.scaling * one_factor(self, self.strength)
        return torch.baddbmm(stacked, first, second, alpha=factor).view(weight.shape)

    def exact_weight(self, weight: Tensor) -> Tensor:
        """Return the effective weight in float32 from a weight in float32, with no rounding on the way."""
        if is_off(self.strength):
            return weight
        change = self.change(self.lora_A.detach().float(), self.lora_B.detach().float())
        return weight + one_factor(self, self.strength) * change

    def extra_repr(self) -> str:
        return f"stack={self.stack}, rank={self.lora_A.shape[0] // self.stack}, scaling={self.scaling:g}"
