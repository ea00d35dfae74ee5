"""Merge: fold adapters into the base weights and leave a plain model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lorakit.adapters.quantized_linear import QuantizedLinear
from lorakit.application.dispatch import move_hook
from lorakit.application.layers import adapter_at, holder_of, places
from lorakit.application.state import detach, plan_of
from lorakit.errors import AdapterError
from lorakit.hooks.manager import Plugins
from lorakit.planning.plan import PlanEntry


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What rounding to the merged dtype cost: the largest error against W₀ + ΔW in float32, and the relative one.

    `untied` names the modules whose weight was shared with another and now is their own.
    """

    modules: int
    max_error: float
    relative_error: float
    untied: tuple[str, ...]


def merge_model(model: nn.Module, plugins: Plugins) -> tuple[nn.Module, MergeReport]:
    """Return the model, in evaluation mode, with every adapter folded into its weight and no class of lorakit left.

    A quantized weight comes back dequantized, in the dtype that it had before.
    Raises: ModelError if the model is not adapted, AdapterError if a merged weight is not finite or a
    method cannot be merged; the model is untouched then.
    """
    plan = plan_of(model)
    shared = _shared_weights(model)
    errors = _Errors()
    plain: dict[nn.Module, nn.Module] = {}
    stacks: list[tuple[PlanEntry, nn.Parameter]] = []
    untied = []
    for entry in plan.entries:
        module = adapter_at(model, entry)
        if entry.adapter is not None and entry.shape is not None and entry.shape.is_parameter:
            stacks.append((entry, _merged_parameter(model, entry, errors)))
        elif entry.adapter is not None:
            plain[module] = _merged(module, entry, errors)
            if id(module.get_submodule("base_layer")._parameters.get("weight")) in shared:
                untied.append(entry.path)
        elif isinstance(module, QuantizedLinear):
            plain[module] = module.plain(module.weight)
    held = places(model)
    for module, replacement in plain.items():
        replacement.train(module.training)
        move_hook(module, replacement)
        for parent, name in held[module]:
            setattr(parent, name, replacement)
    for entry, weight in stacks:
        holder, name = holder_of(model, entry)
        parametrize.remove_parametrizations(holder, name, leave_parametrized=False)
        setattr(holder, name, weight)
    if untied and hasattr(model, "config"):
        model.config.tie_word_embeddings = False  # type: ignore[union-attr]
    detach(model)
    plugins.call("lorakit_model_merged", model=model)
    model.eval()
    return model, MergeReport(len(plain) + len(stacks), errors.largest, errors.relative, tuple(untied))


def _merged(adapter: nn.Module, entry: PlanEntry, errors: _Errors) -> nn.Module:
    assert entry.adapter is not None
    if not hasattr(adapter, "merged"):
        raise AdapterError(
            f"method `{entry.adapter.method.name}` on `{entry.path}` cannot be merged: it has no `merged`"
        )
    with torch.no_grad():
        layer, exact = adapter.merged()  # type: ignore[operator]
    _check_finite(layer.weight, entry)
    errors.add(exact, layer.weight)
    return layer  # type: ignore[no-any-return]


def _merged_parameter(model: nn.Module, entry: PlanEntry, errors: _Errors) -> nn.Parameter:
    holder, name = holder_of(model, entry)
    adapter = adapter_at(model, entry)
    with torch.no_grad():
        original = holder.get_parameter(f"parametrizations.{name}.original")
        matrices = (adapter.get_parameter(name).float() for name in ("lora_A", "lora_B"))
        delta: Tensor = adapter.change(*matrices)  # type: ignore[operator]
        exact = original.float() + delta
        rounded = exact.to(original.dtype)
    _check_finite(rounded, entry)
    errors.add(exact, rounded)
    return nn.Parameter(rounded, requires_grad=False)


def _check_finite(weight: Tensor, entry: PlanEntry) -> None:
    if not bool(torch.isfinite(weight).all()):
        raise AdapterError(
            f"merging `{entry.path}` gives values that are not finite in {weight.dtype}; nothing was merged"
        )


def _shared_weights(model: nn.Module) -> set[int]:
    seen: set[int] = set()
    shared: set[int] = set()
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


class _Errors:
    """Sums rounding errors over layers."""

    def __init__(self) -> None:
        self.largest = 0.0
        self._error = self._norm = 0.0

    def add(self, exact: Tensor, rounded: Tensor) -> None:
        difference = (exact - rounded.float()).abs()
        self.largest = max(self.largest, float(difference.max()))
        self._error += float(difference.double().square().sum())
        self._norm += float(exact.double().square().sum())

    @property
    def relative(self) -> float:
        """The Frobenius norm of the error over that of the weights."""
        return float((self._error / self._norm) ** 0.5) if self._norm else 0.0
