"""What quantizing costs each weight, measured through the quantizer's protocol alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lorakit.application.places import parents_of
from lorakit.application.storing import layer_weight, quantized_weight
from lorakit.dtypes import name_of
from lorakit.errors import ModelError, PlanError, PluginError
from lorakit.hooks.manager import Plugins
from lorakit.language.printer import call_text
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.planning.plan import Plan, PlanEntry
from lorakit.values import QuantizedWeight

# float64 copies of a weight are made of so many values at a time
CHUNK = 2**22

Progress = Callable[[Sequence[PlanEntry]], Iterable[PlanEntry]]


@dataclass(frozen=True, slots=True)
class QuantizationError:
    """How far quantizing moved a weight W to Ŵ, and what it saved.

    `square` is ‖W‖² and `error_square` ‖W−Ŵ‖² (Frobenius), `max_error` the largest |W−Ŵ|. From these follow
    `relative_error`, ‖W−Ŵ‖ / ‖W‖, None where W is 0 and Ŵ is not; `sqnr_db`, 10·log₁₀(‖W‖² / ‖W−Ŵ‖²), None there and
    where nothing was lost; and `bits_per_weight`, counted from the stored tensors.
    """

    weights: int
    bytes_before: int
    bytes_after: int
    square: float
    error_square: float
    max_error: float
    relative_error: float | None = field(init=False)
    sqnr_db: float | None = field(init=False)
    bits_per_weight: float = field(init=False)

    def __post_init__(self) -> None:
        # fields, so that the JSON form has them
        relative = math.sqrt(self.error_square / self.square) if self.square else None if self.error_square else 0.0
        object.__setattr__(self, "relative_error", relative)
        object.__setattr__(self, "sqnr_db", -20 * math.log10(relative) if relative else None)
        object.__setattr__(self, "bits_per_weight", 8 * self.bytes_after / self.weights)


@dataclass(frozen=True, slots=True)
class QuantizedModule:
    """One quantized module; `quantizer` is the call as the spec writes it."""

    path: str
    quantizer: str
    dtype: str
    out_features: int
    in_features: int
    error: QuantizationError


@dataclass(frozen=True, slots=True)
class LossChange:
    """The mean cross-entropy per token on a text, in nats, before and after; the perplexity is e to its power.

    Of the text's `rows`, `cut` were cut to `limit` tokens; `tokens` were predicted.
    """

    text: str
    rows: int
    cut: int
    limit: int
    tokens: int
    before: float
    after: float
    perplexity_before: float = field(init=False)
    perplexity_after: float = field(init=False)

    def __post_init__(self) -> None:
        # beyond e^700 a float overflows, and no loss means anything
        object.__setattr__(self, "perplexity_before", math.exp(min(self.before, 700)))
        object.__setattr__(self, "perplexity_after", math.exp(min(self.after, 700)))


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """What a spec's quantizers do to a model, and to its loss on a text if that was asked for."""

    model_class: str
    modules: tuple[QuantizedModule, ...]
    total: QuantizationError
    loss: LossChange | None = None


def measure(weight: Tensor, quantized: QuantizedWeight, restored: Tensor) -> QuantizationError:
    """Return the error between weight (out_features, in_features) and what dequantizing gave back, in float64."""
    square = error_square = max_error = 0.0
    rows = max(1, CHUNK // weight.shape[1])
    for exact, rounded in zip(weight.split(rows), restored.split(rows), strict=True):
        difference = exact.double() - rounded.double()
        square += float(exact.double().square().sum())
        error_square += float(difference.square().sum())
        max_error = max(max_error, float(difference.abs().max()))
    return QuantizationError(
        weights=weight.numel(),
        bytes_before=weight.numel() * weight.element_size(),
        bytes_after=sum(tensor.numel() * tensor.element_size() for tensor in quantized.tensors.values()),
        square=square,
        error_square=error_square,
        max_error=max_error,
    )


def together(errors: Iterable[QuantizationError]) -> QuantizationError:
    """Return the error of several weights as if they were one, each counting by its size."""
    parts = list(errors)
    return QuantizationError(
        weights=sum(one.weights for one in parts),
        bytes_before=sum(one.bytes_before for one in parts),
        bytes_after=sum(one.bytes_after for one in parts),
        square=math.fsum(one.square for one in parts),
        error_square=math.fsum(one.error_square for one in parts),
        max_error=max(one.max_error for one in parts),
    )


def quantized_entries(plan: Plan) -> tuple[PlanEntry, ...]:
    """Return the entries that quantize. Raises: PlanError if there are none."""
    entries = tuple(entry for entry in plan.entries if entry.quant is not None)
    if not entries:
        raise PlanError(
            "this spec quantizes nothing: write `quant nf4 double` behind an `adapt` rule, "
            "or a rule `quantize @linear nf4 double`"
        )
    return entries


def quantize_and_measure(
    plan: Plan,
    model: nn.Module,
    plugins: Plugins,
    *,
    device: torch.device | None = None,
    keep: bool = False,
    progress: Progress = iter,
) -> tuple[QuantizedModule, ...]:
    """Return the error of every module that a plan quantizes, one at a time, worked out on `device`.

    `keep` puts the quantized layers into the model, each in the place of its original; else the model stays as it is.
    Raises: PlanError if nothing is quantized, ModelError if a weight is no plain one, PluginError if a quantizer fails.
    """
    entries = quantized_entries(plan)
    held = parents_of(model) if keep else {}
    return tuple(_quantized(entry, model, plugins, device, held) for entry in progress(entries))


def by_kind(
    modules: Iterable[QuantizedModule], kind: Callable[[str], str]
) -> Iterator[tuple[str, Sequence[QuantizedModule]]]:
    """Yield (kind, modules) for modules of equal shape, dtype and quantizer whose paths are of one kind."""
    groups: dict[tuple[object, ...], list[QuantizedModule]] = {}
    for module in modules:
        key = (kind(module.path), module.quantizer, module.dtype, module.out_features, module.in_features)
        groups.setdefault(key, []).append(module)
    for (name, *_), members in groups.items():
        yield str(name), members


def _quantized(
    entry: PlanEntry,
    model: nn.Module,
    plugins: Plugins,
    device: torch.device | None,
    held: dict[nn.Module, list[tuple[nn.Module, str]]],
) -> QuantizedModule:
    assert entry.quant is not None and entry.shape is not None
    try:
        original = model.get_submodule(entry.path)
    except AttributeError:
        raise PlanError(
            f"the plan is for another model: it decides `{entry.path}`, which {type(model).__name__} lacks"
        ) from None
    weight = layer_weight(original, entry.shape)
    if isinstance(original, QuantizedLinear) or not weight.is_floating_point():
        raise ModelError(f"`{entry.path}` is stored quantized already: there is no weight to compare with")
    # a layer at a time on the accelerator, while the model stays where it is
    layer = original if device in (None, weight.device) else copy.deepcopy(original).to(device)
    weight = layer_weight(layer, entry.shape)
    stored = quantized_weight(weight, entry, plugins)
    bias = getattr(layer, "bias", None)
    made = QuantizedLinear(stored, plugins.quantizer(entry.quant), bias, plugins.kernels).train(layer.training)
    restored = made.weight
    if restored.shape != weight.shape:
        shapes = f"{tuple(weight.shape)} to {tuple(restored.shape)}"
        raise PluginError(f"quantizer `{entry.quant.name}` dequantizes `{entry.path}` {shapes}")
    error = measure(weight, made.quantized, restored)
    if not math.isfinite(error.square):
        raise ModelError(f"`{entry.path}` holds values that are not finite")
    if not math.isfinite(error.error_square):
        raise PluginError(f"quantizer `{entry.quant.name}` gives values that are not finite on `{entry.path}`")
    for parent, name in held.pop(original, ()):
        setattr(parent, name, made.to(layer_weight(original, entry.shape).device))
    dtype = name_of(weight.dtype)
    return QuantizedModule(entry.path, call_text(entry.quant), dtype, weight.shape[0], weight.shape[1], error)
