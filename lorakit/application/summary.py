"""What an adapted model really holds, counted on its tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lorakit.application.places import base_of, own_parameters
from lorakit.application.state import state_of, unwrapped
from lorakit.dtypes import name_of
from lorakit.layers.quantized_linear import QuantizedLinear


@dataclass(frozen=True, slots=True)
class ModuleSummary:
    """One decided module: what is said of its weight is of the base weight as it is stored now.

    `weight_dtype` is torch's name, or the quantizer's.
    """

    path: str
    shape: tuple[int, ...]
    weight_dtype: str
    weight_bytes: int
    bits_per_weight: float
    added: int
    adapter_dtype: str


@dataclass(frozen=True, slots=True)
class Summary:
    """An adapted model in figures: parameters by count, memory in bytes; all of its adapters together.

    `optimizer_bytes` is what the plan's optimizer keeps once it steps, and `paged_bytes` what of that pages.
    """

    total_parameters: int
    added_parameters: int
    trainable_parameters: int
    weight_bytes: int
    adapter_bytes: int
    optimizer_bytes: int
    paged_bytes: int
    modules: tuple[ModuleSummary, ...]


def summarize(model: nn.Module) -> Summary:
    """Return the figures of an adapted model, read off its tensors. Raises: ModelError if it is not adapted."""
    state = state_of(model)
    model = unwrapped(model)
    added: dict[str, list[Tensor]] = {}
    bases: dict[str, nn.Module | Tensor] = {}
    for adapter in state.named.values():
        for entry in adapter.plan.entries:
            own = own_parameters(adapter.modules[entry.path], entry) if entry.adapter else {}
            added.setdefault(entry.path, []).extend(own.values())
            bases[entry.path] = base_of(model, entry)
    modules = [_module(path, base, added[path]) for path, base in bases.items()]
    # what layers share is one tensor
    adapters = list({id(tensor): tensor for tensors in added.values() for tensor in tensors}.values())
    adapter_bytes = _bytes(adapters)
    return Summary(
        total_parameters=state.inventory.total_parameters + sum(tensor.numel() for tensor in adapters),
        added_parameters=sum(tensor.numel() for tensor in adapters),
        trainable_parameters=sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad),
        weight_bytes=_bytes([*model.parameters(), *model.buffers()]) - adapter_bytes,
        adapter_bytes=adapter_bytes,
        optimizer_bytes=sum(adapter.plan.memory.optimizer for adapter in state.named.values()),
        paged_bytes=sum(adapter.plan.memory.paged for adapter in state.named.values()),
        modules=tuple(modules),
    )


def _module(path: str, base: nn.Module | Tensor, own: Sequence[Tensor]) -> ModuleSummary:
    if isinstance(base, QuantizedLinear):
        dtype = base.quantizer.name + (" double" if getattr(base.quantizer, "double", False) else "")
        weight_bytes = _bytes(list(base.quantized.tensors.values()))
        shape: tuple[int, ...] = (base.out_features, base.in_features)
    else:
        weight: Tensor = base if isinstance(base, Tensor) else base.weight  # type: ignore[assignment]
        dtype, weight_bytes = name_of(weight.dtype), _bytes([weight])
        shape = tuple(weight.shape)
    return ModuleSummary(
        path=path,
        shape=shape,
        weight_dtype=dtype,
        weight_bytes=weight_bytes,
        bits_per_weight=8 * weight_bytes / max(1, math.prod(shape)),
        added=sum(tensor.numel() for tensor in own),
        adapter_dtype=name_of(own[0].dtype) if own else "",
    )


def _bytes(tensors: Sequence[Tensor]) -> int:
    """Return the bytes of these tensors, each counted once."""
    unique = {id(tensor): tensor for tensor in tensors}
    return sum(tensor.numel() * tensor.element_size() for tensor in unique.values())
