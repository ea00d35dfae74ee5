"""What a start took from the base weight, given back as far as its adapter is out of use.

The base of such an adapter holds W₀ − s·B₀A₀, with s its scaling and B₀, A₀ its start. Around the adapter goes a frozen
low-rank change of B₀ and A₀ whose strength is what the adapter's own lacks of 1. Whatever a method makes of its base,
f(W₀ − s·B₀A₀), the two answer with (1 − t)·W₀ + t·f(W₀ − s·B₀A₀) at a strength of t.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor, nn

from lorakit.application.building import build_adapter
from lorakit.application.places import adapters_on, module_at, replace_modules
from lorakit.application.starting import Pair
from lorakit.application.state import NamedAdapter
from lorakit.application.storing import as_matrix, as_weight
from lorakit.dtypes import name_of
from lorakit.hooks.manager import Plugins
from lorakit.language.statements import Adapt
from lorakit.planning.plan import PlanEntry

# a product of two matrices is what the method makes that needs no word
LOW_RANK = Adapt(targets=()).method


def give_back(model: nn.Module, adapter: NamedAdapter, plugins: Plugins) -> None:
    """Put what an adapter's start took around the adapter, unless it stands there already."""
    around: dict[nn.Module, nn.Module] = {}
    for entry, module in adapter.entries():
        pair = adapter.taken.get(entry.path)
        # what failed since may have put back the layers that were there before
        if pair is None or adapter.resting.get(entry.path) in adapters_on(module_at(model, entry.path)):
            continue
        around[module] = adapter.resting[entry.path] = _given_back(module, entry, pair, plugins)
    replace_modules(model, around)


def _given_back(module: nn.Module, entry: PlanEntry, pair: Pair, plugins: Plugins) -> nn.Module:
    """Return the frozen layer around an adapter that adds what its start took."""
    assert entry.adapter is not None and entry.shape is not None
    settings = replace(entry.adapter.settings, dropout=0.0)
    dtype = name_of(next(module.parameters(recurse=False)).dtype)
    table = plugins.method(LOW_RANK).parameters(entry.shape, settings)
    # a convolution's hold a kernel
    values = {one.name: value.view(one.shape) for one, value in zip(table, pair, strict=True)}
    frozen = tuple(replace(one, trains=False, dtype=dtype) for one in table)
    plain = replace(entry.adapter, method=LOW_RANK, settings=settings, parameters=frozen)
    layer = build_adapter(module, replace(entry, adapter=plain), values, {}, plugins)
    layer.gives_back = True  # type: ignore[assignment]
    return layer


def original_weight(adapters: Iterable[NamedAdapter], entry: PlanEntry, weight: Tensor) -> Tensor:
    """Return a layer's weight as it was before adapters on it took their start from it, both as adapters see it."""
    assert entry.shape is not None
    for adapter in adapters:
        if (pair := adapter.taken.get(entry.path)) is None:
            continue
        settings = next(one.adapter.settings for one, _ in adapter.entries() if one.adapter and one.path == entry.path)
        lora_A, lora_B = (matrix.to(weight.device).float().flatten(1) for matrix in pair)
        whole = as_matrix(weight, entry.shape).float() + settings.factor * (lora_B @ lora_A)
        weight = as_weight(whole, entry.shape).to(weight.dtype)
    return weight
