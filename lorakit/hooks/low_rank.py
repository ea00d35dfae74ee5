"""What every method with two thin matrices shares: their table, their start, and what PEFT's LoraConfig says of them.

Source: Hu et al. 2021, "LoRA", arXiv:2106.09685, section 4.1.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from lorakit.hooks.starting import StartContext
    from lorakit.planning.plan import ParameterPlan, PlanEntry, Settings
    from lorakit.values import LayerShape

# the clauses of `adapt` that such a method takes
CLAUSES = frozenset({"rank", "alpha", "scaling", "dropout", "init", "lr_ratio"})

Pair = tuple[tuple[int, ...], tuple[int, ...]]


class Matrices(NamedTuple):
    """The shapes of the two matrices for one kind of layer, and their names in files."""

    shapes: Callable[[LayerShape, int], Pair]
    names: tuple[str, str] = ("lora_A.weight", "lora_B.weight")


def _linear(layer: LayerShape, rank: int) -> Pair:
    return (rank, layer.in_features), (layer.out_features, rank)


def _convolution(layer: LayerShape, rank: int) -> Pair:
    return (rank, layer.in_features, *layer.kernel), (layer.out_features, rank, *(1 for _ in layer.kernel))


def _stack(layer: LayerShape, rank: int) -> Pair:
    return (layer.stack * rank, layer.in_features), (layer.out_features, rank * layer.stack)


def _flipped_stack(layer: LayerShape, rank: int) -> Pair:
    # the weight lies as (stack, in_features, out_features), and PEFT takes the last for the inputs
    return (layer.stack * rank, layer.out_features), (layer.in_features, rank * layer.stack)


KINDS: Mapping[str, Matrices] = {
    "conv1d": Matrices(_convolution),
    "conv2d": Matrices(_convolution),
    "conv3d": Matrices(_convolution),
    "stack": Matrices(_stack),
    "stack_transposed": Matrices(_stack),
    "stack_flipped": Matrices(_flipped_stack),
    "embedding": Matrices(_linear, ("lora_embedding_A", "lora_embedding_B")),
}
# a kind that a plugin brought has the matrices of a linear layer too
LINEAR = Matrices(_linear)


def low_rank_table(layer: LayerShape, settings: Settings) -> tuple[ParameterPlan, ParameterPlan]:
    """Return lora_A (rank, in_features) and lora_B (out_features, rank), with a kernel for a convolution.

    LoRA+ trains B by another rate than A (Hayou et al. 2024, arXiv:2402.12354).
    """
    from lorakit.planning.plan import ParameterPlan

    assert settings.rank is not None
    kind = KINDS.get(layer.kind, LINEAR)
    shape_A, shape_B = kind.shapes(layer, settings.rank)
    name_A, name_B = kind.names
    return (
        ParameterPlan("lora_A", shape_A, file_name=name_A),
        ParameterPlan("lora_B", shape_B, rate=settings.lr_ratio or 1.0, file_name=name_B),
    )


def start_low_rank(parameters: Mapping[str, Tensor], context: StartContext) -> None:
    """Fill lora_A and lora_B as the rule's `init` says, each as a matrix (rank, inputs) and (outputs, rank)."""
    lora_A, lora_B = parameters["lora_A"].flatten(1), parameters["lora_B"].flatten(1)
    first, second = (lora_B.T, lora_A.T) if context.shape.is_flipped else (lora_A, lora_B)
    context.initialize(first, second)


def low_rank_fields(entries: Sequence[PlanEntry]) -> dict[str, Any]:
    """Return the fields of PEFT's LoraConfig that say what these adapters compute.

    PEFT knows one scaling rule for the whole adapter: where rules differ, rsLoRA goes in as the alpha that equals it.
    A field that ends in `_pattern` is by path.
    """
    settings = {entry.path: entry.adapter.settings for entry in entries if entry.adapter is not None}
    shapes = [entry.shape for entry in entries if entry.shape is not None]
    rslora = bool(settings) and all(one.scaling == "rslora" for one in settings.values())
    alphas = {path: _alpha(one, rslora) for path, one in settings.items()}
    ranks = {path: one.rank or 0 for path, one in settings.items()}
    rank, alpha = _commonest(ranks.values(), 8), _commonest(alphas.values(), 8.0)
    # with a dropout PEFT refuses to load adapters of parameters; plan.json keeps it
    has_parameters = any(shape.is_parameter for shape in shapes)
    dropout = 0.0 if has_parameters else _commonest((one.dropout or 0.0 for one in settings.values()), 0.0)
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "use_rslora": rslora,
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        "fan_in_fan_out": {shape.kind for shape in shapes} == {"linear_transposed"},
        "init_lora_weights": True,
    }


def _alpha(settings: Settings, rslora: bool) -> float:
    value = (settings.alpha or 0.0) if rslora else settings.factor * (settings.rank or 1)
    return int(value) if float(value).is_integer() else value


def _commonest(values: Iterable[Any], default: Any) -> Any:
    counted = collections.Counter(values).most_common(1)
    return counted[0][0] if counted else default
