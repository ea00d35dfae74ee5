"""What every LoRA adapter shares: a frozen base layer, two thin matrices, and a change of the base layer's weight.

Source: Hu et al. 2021, "LoRA", arXiv:2106.09685, section 4.1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lorakit.layers.shown import shown
from lorakit.layers.strength import Strength, factor, is_off, one_factor


class LoRALayer(nn.Module, ABC):
    """A frozen `base_layer` and a low-rank change of its weight: lora_A and lora_B, multiplied by `scaling`.

    The base layer may be an adapter itself: every further adapter of a layer stands around those before it.

    Shapes: both matrices as their adapter says; flattened from the second dimension on, lora_A is (rank, inputs) and
    lora_B is (outputs, rank).

    One that `gives_back` holds what the start of the adapter in it took from the base weight, for rows that it does not
    serve.
    """

    gives_back = False

    def __init__(
        self,
        base_layer: nn.Module,
        lora_A: nn.Parameter,
        lora_B: nn.Parameter,
        *,
        scaling: float,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scaling = scaling
        # a module, which trainers find and turn off
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.strength: Strength = 1.0
        self.lora_A = lora_A
        self.lora_B = lora_B

    @property
    def rank(self) -> int:
        return self.lora_A.shape[0]

    @abstractmethod
    def change(self, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        """Return the change of the base weight that two matrices make.

        Shapes: (out_features, in_features) for a linear layer, as the layer holds its weight for any other.
        """

    @property
    def bare_layer(self) -> nn.Module:
        """The layer under all of its adapters."""
        base = self.base_layer
        # adapters of other methods too
        while isinstance(inner := base._modules.get("base_layer"), nn.Module):
            base = inner
        return base

    @property
    def dropped(self) -> float:
        """The share of its inputs that dropout leaves out of the change now."""
        dropout = self.dropout
        return dropout.p if dropout is not None and dropout.training else 0.0

    @property
    def is_off(self) -> bool:
        """Whether the adapter is out of use, so that its base layer alone answers."""
        return is_off(self.strength)

    def scaling_of(self, x: Tensor) -> float | Tensor:
        """Return what A · x is multiplied by: a number, or a tensor (rows, 1, …) for x (rows, …).

        Raises: RowsError where rows have a factor each and the first dimension of x is not that of the batch.
        """
        return self.scaling * factor(self, self.strength, x)

    @property
    def weight(self) -> Tensor:
        """The effective weight as the base layer holds its own; no one learns by it while the adapter drops inputs.

        Some modules compute with the weights of their children instead of calling them (nn.TransformerEncoderLayer and
        nn.MultiheadAttention in evaluation mode); through this they still see the adapter.
        """
        base: Tensor = self.base_layer.weight  # type: ignore[assignment]
        if self.is_off:
            return base
        change = self.change(self.lora_A.to(base.dtype), self.lora_B.to(base.dtype))
        return shown(base + self._as_held(one_factor(self, self.strength) * change), self, self.dropout)

    def _as_held(self, weight: Tensor) -> Tensor:
        """Return a weight (out_features, in_features) as the base layer holds its own."""
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        bias: Tensor | None = self.base_layer.bias  # type: ignore[assignment]
        return bias

    def exact_weight(self, weight: Tensor) -> Tensor:
        """Return the effective weight over a base layer of this weight, both float32, with no rounding on the way."""
        if self.is_off:
            return weight
        return weight + one_factor(self, self.strength) * self.exact_change()

    def exact_change(self) -> Tensor:
        """Return the change of the base weight at a strength of 1, in float32."""
        return self.change(self.lora_A.detach().float(), self.lora_B.detach().float())

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scaling={self.scaling:g}, dtype={self.lora_A.dtype}"
