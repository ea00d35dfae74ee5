"""`vera`: two random matrices for the whole adapter, and two vectors for each layer.

Source: Kopiczko et al. 2024, "VeRA: Vector-based Random Matrix Adaptation", arXiv:2310.11454, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lorakit.hooks import LayerShape, ParameterPlan, PlanEntry, Settings, StartContext


@dataclass(frozen=True)
class VeRA:
    """Random A and B that all layers share and that stay as they are: h = W₀x + b ⊙ B(d ⊙ Ax), with b and d learned.

    A and B are as large as the largest layer asks for; a smaller one takes their first rows and columns.
    """

    name: ClassVar[str] = "vera"
    clauses: ClassVar[frozenset[str]] = frozenset({"rank", "dropout"})

    d_initial: float = field(default=0.1, metadata={"help": "the start of every d; b starts at 0"})

    def __post_init__(self) -> None:
        if not 0 < self.d_initial < math.inf:
            raise ValueError("d_initial must be a positive number")

    def parameters(self, layer: LayerShape, settings: Settings) -> Sequence[ParameterPlan]:
        """Return vera_lambda_b (out_features,) and vera_lambda_d (rank,), and the shared vera_A and vera_B."""
        from lorakit.hooks import ParameterPlan

        if not layer.is_linear or settings.rank is None:
            return []
        rank = settings.rank
        return [
            ParameterPlan("vera_A", (rank, layer.in_features), trains=False, shared="vera_A"),
            ParameterPlan("vera_B", (layer.out_features, rank), trains=False, shared="vera_B"),
            # vectors are small, and 16 bits would lose small steps
            ParameterPlan("vera_lambda_b", (layer.out_features,), dtype="float32"),
            ParameterPlan("vera_lambda_d", (rank,), dtype="float32"),
        ]

    def start(self, parameters: Mapping[str, Tensor], context: StartContext) -> None:
        """Fill b with zeros and d with `d_initial`; A and B, by the first layer, as He et al. (arXiv:1502.01852) do."""
        parameters["vera_lambda_b"].zero_()
        parameters["vera_lambda_d"].fill_(self.d_initial)
        for name in ("vera_A", "vera_B"):
            if (matrix := parameters.get(name)) is not None:
                bound = math.sqrt(6 / matrix.shape[1])
                matrix.uniform_(-bound, bound, generator=context.generator)

    def adapt(self, layer: nn.Module, entry: PlanEntry, parameters: Mapping[str, nn.Parameter]) -> nn.Module:
        """Return the adapter around a linear layer."""
        from lorakit_methods.vera_layer import VeRALayer

        assert entry.shape is not None and entry.adapter is not None
        return VeRALayer(layer, entry.shape, parameters, dropout=entry.adapter.settings.dropout or 0.0)

    def peft(self, entries: Sequence[PlanEntry]) -> Mapping[str, Any] | None:
        """Return the fields of PEFT's VeraConfig; None where ranks differ, since it has one for the whole adapter."""
        adapters = [entry.adapter for entry in entries if entry.adapter is not None]
        ranks = {adapter.settings.rank for adapter in adapters}
        if len(ranks) > 1:
            return None
        return {
            "peft_type": "VERA",
            "r": ranks.pop(),
            "vera_dropout": max(adapter.settings.dropout or 0.0 for adapter in adapters),
            "d_initial": self.d_initial,
            # A and B are in the file, and nobody has to draw them again
            "projection_prng_key": 0,
            "save_projection": True,
            "fan_in_fan_out": {entry.shape.kind for entry in entries if entry.shape} == {"linear_transposed"},
        }
