"""`lora`: h = W₀x + (alpha / rank) · B · A · x, for every kind of layer that has an adapter.

Source: Hu et al. 2021, "LoRA", arXiv:2106.09685, section 4.1.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.hooks import low_rank
from lorakit.hooks.protocols import Method
from lorakit.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lorakit.hooks.starting import StartContext
    from lorakit.planning.plan import ParameterPlan, PlanEntry, Settings
    from lorakit.values import LayerShape

# the adapter of every kind of layer, by module and class: none is imported before a model is adapted
ADAPTERS: Mapping[str, tuple[str, str]] = {
    "linear": ("lora_linear", "LoRALinear"),
    "linear_transposed": ("lora_linear", "LoRATransposedLinear"),
    "conv1d": ("lora_conv", "LoRAConv"),
    "conv2d": ("lora_conv", "LoRAConv"),
    "conv3d": ("lora_conv", "LoRAConv"),
    "embedding": ("lora_embedding", "LoRAEmbedding"),
}


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation: the change of a weight is a product of two thin matrices."""

    name: ClassVar[str] = "lora"
    clauses: ClassVar[frozenset[str]] = low_rank.CLAUSES

    def parameters(self, layer: LayerShape, settings: Settings) -> Sequence[ParameterPlan]:
        """Return lora_A (rank, in_features) and lora_B (out_features, rank), with a kernel for a convolution."""
        return low_rank.low_rank_table(layer, settings)

    def start(self, parameters: Mapping[str, Tensor], context: StartContext) -> None:
        """Fill both matrices as the rule's `init` says."""
        low_rank.start_low_rank(parameters, context)

    def adapt(self, layer: nn.Module, entry: PlanEntry, parameters: Mapping[str, nn.Parameter]) -> nn.Module | None:
        """Return the adapter of this kind of layer, or None for a kind that a plugin brought."""
        assert entry.adapter is not None and entry.shape is not None
        settings, shape = entry.adapter.settings, entry.shape
        made: nn.Module
        if shape.is_parameter:
            from lorakit.layers.lora_stack import LoRAStack

            transposed = shape.kind == "stack_transposed"
            return LoRAStack(**parameters, stack=shape.stack, scaling=settings.factor, transposed=transposed)
        if shape.kind not in ADAPTERS:
            return None
        module, name = ADAPTERS[shape.kind]
        adapter = getattr(importlib.import_module(f"lorakit.layers.{module}"), name)
        made = adapter(layer, **parameters, scaling=settings.factor, dropout=settings.dropout or 0.0)
        return made

    def peft(self, entries: Sequence[PlanEntry]) -> Mapping[str, Any]:
        """Return the fields of PEFT's LoraConfig."""
        return low_rank.low_rank_fields(entries)

    def resized(
        self, values: Mapping[str, Tensor], layer: LayerShape, theirs: Settings, ours: Settings
    ) -> Mapping[str, Tensor]:
        """Return the two matrices of a smaller rank filled up with zeros, and scaled as ours are.

        Raises: ValueError if their rank is larger.
        """
        from lorakit.layers.resizing import resized

        assert theirs.rank is not None and ours.rank is not None
        return resized(
            values, stack=layer.stack or 1, rank=theirs.rank, room=ours.rank, ratio=theirs.factor / ours.factor
        )


@hookimpl
def lorakit_methods() -> list[type[Method]]:
    return [LoRA]
