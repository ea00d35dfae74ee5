"""LoRA on a matrix, or a stack of them, that a module holds as one parameter, such as the experts of a mixture.

The adapter is a parametrization: whoever reads the parameter reads W₀ + scaling · BₑAₑ for every expert e.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lorakit.layers.share import Share, is_off, one_factor

if TYPE_CHECKING:
    from lorakit.planning.plan import PlanEntry


class LoRAStack(nn.Module):
    """A change of a stacked weight (stack, rows, columns), one low-rank product for each matrix of the stack.

    Shapes, in PEFT's layout: lora_A (stack · rank, columns) and lora_B (rows, rank · stack); with `transposed`, for a
    weight that lies as (stack, in_features, out_features), lora_A is (stack · rank, rows) and lora_B (columns, …).
    """

    def __init__(
        self,
        stack: int,
        shape_A: Sequence[int],
        shape_B: Sequence[int],
        *,
        scaling: float,
        dtype: torch.dtype,
        device: torch.device,
        transposed: bool,
    ) -> None:
        super().__init__()
        self.stack = stack
        self.scaling = scaling
        self.share: Share = 1.0
        self.transposed = transposed
        self.lora_A = nn.Parameter(torch.empty(tuple(shape_A), dtype=dtype, device=device))
        self.lora_B = nn.Parameter(torch.empty(tuple(shape_B), dtype=dtype, device=device))

    @classmethod
    def around(cls, holder: nn.Module, entry: PlanEntry, shape_A: Sequence[int], shape_B: Sequence[int]) -> Self:
        """Return the adapter that a plan's entry asks for on a parameter of `holder`, its matrices not yet set."""
        assert entry.adapter is not None and entry.shape is not None
        name = entry.path.rpartition(".")[2]
        below = f"parametrizations.{name}.original" if parametrize.is_parametrized(holder, name) else name
        return cls(
            entry.shape.stack,
            shape_A,
            shape_B,
            scaling=entry.adapter.factor,
            dtype=getattr(torch, entry.adapter.dtype),
            device=holder.get_parameter(below).device,
            transposed=entry.shape.kind == "stack_transposed",
        )

    def delta(self) -> Tensor:
        """Return the change of the weight (stack, rows, columns), in the adapter's dtype."""
        return self.change(self.lora_A, self.lora_B)

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
        if is_off(self.share):
            return weight
        delta = self.change(self.lora_A.to(weight.dtype), self.lora_B.to(weight.dtype))
        return weight + one_factor(self, self.share) * delta

    def exact_weight(self, weight: Tensor) -> Tensor:
        """Return the effective weight in float32 from a weight in float32, with no rounding on the way."""
        if is_off(self.share):
            return weight
        change = self.change(self.lora_A.detach().float(), self.lora_B.detach().float())
        return weight + one_factor(self, self.share) * change

    def extra_repr(self) -> str:
        return f"stack={self.stack}, rank={self.lora_A.shape[0] // self.stack}, scaling={self.scaling:g}"
