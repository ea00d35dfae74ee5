"""`lora`: h = W₀x + (alpha / rank) · B · A · x, for every kind of layer that has an adapter.

Source: Hu et al. 2021, "LoRA", arXiv:2106.09685, section 4.1.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorakit.hooks.protocols import Method
from lorakit.hooks.specs import hookimpl
from lorakit.values import LayerShape

if TYPE_CHECKING:
    from torch import nn

    from lorakit.planning.plan import PlanEntry

Shapes = Callable[[LayerShape, int], tuple[tuple[int, ...], tuple[int, ...]]]

# as PEFT names the two matrices in adapter files
MATRICES = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
LOOKUPS = {"lora_A": "lora_embedding_A", "lora_B": "lora_embedding_B"}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of layer: the adapter's class, the shapes of its two matrices, and their names in files."""

    adapter: str
    shapes: Shapes
    file_names: Mapping[str, str]


def _linear(layer: LayerShape, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (rank, layer.in_features), (layer.out_features, rank)


def _convolution(layer: LayerShape, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (rank, layer.in_features, *layer.kernel), (layer.out_features, rank, *(1 for _ in layer.kernel))


def _stack(layer: LayerShape, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (layer.stack * rank, layer.in_features), (layer.out_features, rank * layer.stack)


def _flipped_stack(layer: LayerShape, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    # the weight lies as (stack, in_features, out_features), and PEFT takes the last for the inputs
    return (layer.stack * rank, layer.out_features), (layer.in_features, rank * layer.stack)


KINDS: Mapping[str, Kind] = {
    "linear": Kind("lora_linear.LoRALinear", _linear, MATRICES),
    "linear_transposed": Kind("lora_linear.LoRATransposedLinear", _linear, MATRICES),
    "conv1d": Kind("lora_conv.LoRAConv", _convolution, MATRICES),
    "conv2d": Kind("lora_conv.LoRAConv", _convolution, MATRICES),
    "conv3d": Kind("lora_conv.LoRAConv", _convolution, MATRICES),
    "stack": Kind("lora_stack.LoRAStack", _stack, MATRICES),
    "stack_transposed": Kind("lora_stack.LoRAStack", _stack, MATRICES),
    "stack_flipped": Kind("lora_stack.LoRAStack", _flipped_stack, MATRICES),
    "embedding": Kind("lora_embedding.LoRAEmbedding", _linear, LOOKUPS),
}


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation: the change of a weight is a product of two thin matrices."""

    name: ClassVar[str] = "lora"
    clauses: ClassVar[frozenset[str]] = frozenset({"rank", "alpha", "scaling", "dropout", "init", "lr_ratio"})
    needs_rank: ClassVar[bool] = True

    def parameter_shapes(self, layer: LayerShape, rank: int | None) -> Mapping[str, tuple[int, ...]]:
        """Return lora_A (rank, in_features) and lora_B (out_features, rank), with a kernel for a convolution."""
        if rank is None:
            return {}
        # a plugin's kind of layer brings its own adapter, with the two matrices of a linear one
        shape_A, shape_B = (KINDS[layer.kind].shapes if layer.kind in KINDS else _linear)(layer, rank)
        return {"lora_A": shape_A, "lora_B": shape_B}

    def file_names(self, layer: LayerShape) -> Mapping[str, str]:
        """Return PEFT's names."""
        return KINDS[layer.kind].file_names if layer.kind in KINDS else MATRICES

    def adapt(self, layer: nn.Module, entry: PlanEntry) -> nn.Module | None:
        """Return the adapter of this kind of layer, or None for a kind that a plugin brought."""
        assert entry.adapter is not None and entry.shape is not None
        if entry.shape.kind not in KINDS:
            return None
        kind = KINDS[entry.shape.kind]
        module, _, name = kind.adapter.partition(".")
        adapter = getattr(importlib.import_module(f"lorakit.layers.{module}"), name)
        shape_A, shape_B = kind.shapes(entry.shape, entry.adapter.rank or 0)
        made: nn.Module = adapter.around(layer, entry, shape_A, shape_B)
        return made


@hookimpl
def lorakit_methods() -> list[type[Method]]:
    return [LoRA]
