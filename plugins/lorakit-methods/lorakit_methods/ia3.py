"""`ia3`: a learned factor for every output of a layer, or for every input.

Source: Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning", arXiv:2205.05638, section 3.3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lorakit.hooks import LayerShape, ParameterPlan, PlanEntry, Settings, StartContext

# the kinds of layer that PEFT's IA3 knows
KNOWN_TO_PEFT = ("linear", "linear_transposed", "conv2d", "conv3d")


@dataclass(frozen=True)
class IA3:
    """Multiplies what comes out of a layer, or what goes in, by one learned vector: h = l ⊙ (W₀x + b).

    The paper does the first to keys and values, and the second, `feedforward`, to the last layer of each feed-forward
    block. All start at 1.
    """

    name: ClassVar[str] = "ia3"
    clauses: ClassVar[frozenset[str]] = frozenset()

    feedforward: bool = field(default=False, metadata={"help": "multiply the inputs, h = W₀(l ⊙ x) + b"})

    def parameters(self, layer: LayerShape, settings: Settings) -> Sequence[ParameterPlan]:
        """Return ia3_l: (out_features, 1), or (1, in_features) for inputs; (1, channels, 1, …) for a convolution."""
        from lorakit.hooks import ParameterPlan

        size = layer.in_features if self.feedforward else layer.out_features
        if not layer.is_linear and not layer.kernel:
            return []
        column = (1, size) if self.feedforward else (size, 1)
        shape = (1, size, *(1 for _ in layer.kernel)) if layer.kernel else column
        # a vector is small, and what is near 1 moves in steps that bf16 would lose
        return [ParameterPlan("ia3_l", shape, dtype="float32")]

    def start(self, parameters: Mapping[str, Tensor], context: StartContext) -> None:
        """Fill the vector with ones."""
        parameters["ia3_l"].fill_(1.0)

    def adapt(self, layer: nn.Module, entry: PlanEntry, parameters: Mapping[str, nn.Parameter]) -> nn.Module:
        """Return the adapter around a linear layer or a convolution."""
        from lorakit_methods.ia3_layer import IA3Layer

        assert entry.shape is not None
        return IA3Layer(layer, entry.shape, parameters, feedforward=self.feedforward)

    def peft(self, entries: Sequence[PlanEntry]) -> Mapping[str, Any] | None:
        """Return the fields of PEFT's IA3Config; None if a layer is of a kind that its IA3 does not know."""
        kinds = {entry.shape.kind for entry in entries if entry.shape is not None}
        if not kinds <= set(KNOWN_TO_PEFT):
            return None
        inputs = [entry.path for entry in entries if _multiplies_inputs(entry)]
        return {
            "peft_type": "IA3",
            # a regex over whole paths: a list would match every path that ends in one of its strings
            "feedforward_modules": "|".join(map(re.escape, inputs)),
            "fan_in_fan_out": kinds == {"linear_transposed"},
            "init_ia3_weights": True,
        }


def _multiplies_inputs(entry: PlanEntry) -> bool:
    return entry.adapter is not None and bool(dict(entry.adapter.method.options).get("feedforward"))
