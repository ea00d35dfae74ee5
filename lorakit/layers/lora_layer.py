"""What every LoRA adapter shares: a frozen base layer, two thin matrices, and a change of the base layer's weight.

Source: Hu et al. 2021, "LoRA", arXiv:2106.09685, section 4.1.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.layers.share import Share, factor, is_off, one_factor

if TYPE_CHECKING:
    from lorakit.planning.plan import PlanEntry


class LoRALayer(nn.Module, ABC):
    """A frozen `base_layer` and a low-rank change of its weight: lora_A and lora_B, multiplied by `scaling`.

    The base layer may be an adapter itself: every further adapter of a layer stands around those before it.

    Shapes: both matrices as their adapter says; flattened from the second dimension on, lora_A is (rank, inputs) and
    lora_B is (outputs, rank).
    """

    def __init__(
        self,
        base_layer: nn.Module,
        shape_A: Sequence[int],
        shape_B: Sequence[int],
        *,
        scaling: float,
        dropout: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        device = next((tensor.device for tensor in (*base_layer.parameters(), *base_layer.buffers())), None)
        self.base_layer = base_layer
        self.scaling = scaling
        self.dropout = dropout
        self.share: Share = 1.0
        self.lora_A = nn.Parameter(torch.empty(tuple(shape_A), dtype=dtype, device=device))
        self.lora_B = nn.Parameter(torch.empty(tuple(shape_B), dtype=dtype, device=device))

    @classmethod
    def around(cls, layer: nn.Module, entry: PlanEntry, shape_A: Sequence[int], shape_B: Sequence[int]) -> Self:
        """Return the adapter that a plan's entry asks for, its parameters not yet set."""
        adapter = entry.adapter
        assert adapter is not None
        dtype: torch.dtype = getattr(torch, adapter.dtype)
        return cls(layer, shape_A, shape_B, scaling=adapter.factor, dropout=adapter.dropout, dtype=dtype)

    @property
    def rank(self) -> int:
        return self.lora_A.shape[0]

    @abstractmethod
    def change(self, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        """Return the change of the base weight that two matrices make, in the base weight's own layout."""

    def delta(self) -> Tensor:
        """Return the change of the base weight, in its own layout and the adapter's dtype."""
        return self.change(self.lora_A, self.lora_B)

    @property
    def core(self) -> nn.Module:
        """The layer under all of its adapters."""
        base = self.base_layer
        return base.core if isinstance(base, LoRALayer) else base

    @property
    def is_off(self) -> bool:
        """Whether the adapter is out of use, so that its base layer alone answers."""
        return is_off(self.share)

    def added(self, result: Tensor, update: Tensor) -> Tensor:
        """Return result + scaling · share · update, in the result's dtype."""
        return result + (update * (self.scaling * factor(self, self.share, update))).to(result.dtype)

    @abstractmethod
    def base_matrix(self) -> Tensor:
        """Return the base weight as (outputs, inputs), dequantized if it is quantized."""

    @property
    def weight(self) -> Tensor:
        """The effective weight, in the base layer's orientation; dropout does not show in it.

        Some modules compute with the weights of their children instead of calling them (nn.TransformerEncoderLayer and
        nn.MultiheadAttention in evaluation mode); through this they still see the adapter.
        """
        base: Tensor = self.base_layer.weight  # type: ignore[assignment]
        if self.is_off:
            return base
        change = self.change(self.lora_A.to(base.dtype), self.lora_B.to(base.dtype))
        return base + one_factor(self, self.share) * change

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        bias: Tensor | None = self.base_layer.bias  # type: ignore[assignment]
        return bias

    def exact_weight(self) -> Tensor:
        """Return the effective weight in float32, in the base layer's orientation, with no rounding on the way."""
        base = self.base_layer
        below = base.exact_weight() if isinstance(base, LoRALayer) else base.weight.detach().float()  # type: ignore[operator]
        if self.is_off:
            return below
        share = one_factor(self, self.share)
        return below + share * self.change(self.lora_A.detach().float(), self.lora_B.detach().float())

    def merged(self) -> tuple[nn.Module, Tensor]:
        """Return a plain layer of the same function without dropout, and its weight before rounding, in float32.

        What lies under the adapters stays as it is. A quantized weight comes back as a Linear in the dtype that it had
        before, so that the model around it still runs.
        """
        exact, core = self.exact_weight(), self.core
        if isinstance(core, QuantizedLinear):
            return core.plain(exact.to(core.dequantized_dtype)), exact
        layer = copy.copy(core)
        layer._parameters = dict(core._parameters)
        # a new parameter: where the base weight is tied, the other end keeps its own
        layer.weight = nn.Parameter(exact.to(core.weight.dtype), requires_grad=False)  # type: ignore[arg-type]
        return layer, exact

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scaling={self.scaling:g}, dtype={self.lora_A.dtype}"
