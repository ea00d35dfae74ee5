"""`lora`: h = W₀x + (alpha / rank) · B · A · x.

Source: Hu et al. 2021, "LoRA", arXiv:2106.09685, section 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorakit.hooks.protocols import Method
from lorakit.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from lorakit.planning.inventory import ModuleInfo
    from lorakit.planning.plan import PlanEntry


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation: the change of a weight is a product of two thin matrices."""

    name: ClassVar[str] = "lora"
    needs_rank: ClassVar[bool] = True

    def parameter_shapes(self, layer: ModuleInfo, rank: int | None) -> Mapping[str, tuple[int, ...]]:
        """Return lora_A (rank, in_features) and lora_B (out_features, rank)."""
        assert rank is not None and layer.shape is not None
        return {"lora_A": (rank, layer.shape.in_features), "lora_B": (layer.shape.out_features, rank)}

    def adapt(self, layer: nn.Module, entry: PlanEntry) -> nn.Module | None:
        """Return a LoRALinear around a layer that computes y (..., out_features) from x (..., in_features)."""
        from lorakit.adapters.lora_linear import LoRALinear

        return LoRALinear.around(layer, entry)


@hookimpl
def lorakit_methods() -> list[type[Method]]:
    return [LoRA]
