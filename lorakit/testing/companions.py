"""Two methods that are not LoRA-shaped, for others to stand on and under: a vector a layer, and matrices for all.

Sources: Liu et al. 2022, arXiv:2205.05638 (IA³); Kopiczko et al. 2023, arXiv:2310.11454 (VeRA).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.hooks.protocols import Method
from lorakit.planning.plan import ParameterPlan, PlanEntry, Settings
from lorakit.values import LayerShape

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lorakit.hooks.starting import StartContext


@dataclass(frozen=True)
class Vector:
    """h = l ⊙ (W₀x + b): a factor for every output."""

    name: ClassVar[str] = "testing_vector"
    clauses: ClassVar[frozenset[str]] = frozenset()

    def parameters(self, layer: LayerShape, settings: Settings) -> Sequence[ParameterPlan]:
        """Return the factors (out_features,) of a linear layer."""
        return (ParameterPlan("factors", (layer.out_features,)),) if layer.is_linear else ()

    def start(self, parameters: Mapping[str, Tensor], context: StartContext) -> None:
        """Fill them with 1."""
        parameters["factors"].fill_(1)

    def adapt(self, layer: nn.Module, entry: PlanEntry, parameters: Mapping[str, nn.Parameter]) -> nn.Module | None:
        """Return the adapter."""
        from lorakit.testing.companion_layers import VectorLayer

        return VectorLayer(layer, **parameters)

    def peft(self, entries: Sequence[PlanEntry]) -> Mapping[str, Any] | None:
        """Return None."""
        return None


@dataclass(frozen=True)
class SharedMatrices:
    """h = W₀x + d ⊙ B · (e ⊙ A · x), with A and B drawn once for all layers and frozen."""

    name: ClassVar[str] = "testing_shared"
    clauses: ClassVar[frozenset[str]] = frozenset({"rank"})

    def parameters(self, layer: LayerShape, settings: Settings) -> Sequence[ParameterPlan]:
        """Return A (rank, in_features) and B (out_features, rank), shared, and vectors (rank,) and (out_features,)."""
        if not layer.is_linear or settings.rank is None:
            return ()
        rank = settings.rank
        return (
            ParameterPlan(
                "A", (rank, layer.in_features), trains=False, shared=f"A{rank}", file_name=f"shared_A.{rank}"
            ),
            ParameterPlan(
                "B", (layer.out_features, rank), trains=False, shared=f"B{rank}", file_name=f"shared_B.{rank}"
            ),
            ParameterPlan("e", (rank,)),
            ParameterPlan("d", (layer.out_features,)),
        )

    def start(self, parameters: Mapping[str, Tensor], context: StartContext) -> None:
        """Draw what is shared, where this layer is the first; e = 0.1, d = 0."""
        for name in ("A", "B"):
            if name in parameters:
                parameters[name].normal_(std=0.3, generator=context.generator)
        parameters["e"].fill_(0.1)

    def adapt(self, layer: nn.Module, entry: PlanEntry, parameters: Mapping[str, nn.Parameter]) -> nn.Module | None:
        """Return the adapter, which takes its part of what is shared."""
        from lorakit.testing.companion_layers import SharedLayer

        assert entry.shape is not None
        return SharedLayer(layer, **parameters, in_features=entry.shape.in_features)

    def peft(self, entries: Sequence[PlanEntry]) -> Mapping[str, Any] | None:
        """Return None."""
        return None


COMPANIONS: tuple[type[Method], ...] = (Vector, SharedMatrices)
