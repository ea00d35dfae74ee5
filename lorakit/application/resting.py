"""What a start took from the base weight, given back as far as its adapter is out of use.

Such an adapter answers W₀ − s·B₀A₀ + s·BA, with s its scaling and B₀, A₀ its start. Under it goes a frozen LoRA of B₀
and A₀ whose strength is what the adapter's own lacks of 1: out of use the model answers as it did before, W₀.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor, nn

from lorakit.application.state import NamedAdapter
from lorakit.application.storing import as_matrix, as_weight
from lorakit.errors import ModelError
from lorakit.hooks.manager import Plugins
from lorakit.language.statements import PluginCall
from lorakit.layers.lora_layer import LoRALayer
from lorakit.layers.strength import Strength
from lorakit.planning.plan import PlanEntry

_LORA = PluginCall("lora")


def check_resting(adapter: NamedAdapter, strength: Strength) -> None:
    """Raise ModelError if an adapter whose start was taken from the base cannot be in use as far as that."""
    if not adapter.taken or (isinstance(strength, float) and strength in (0.0, 1.0)):
        return
    for entry, module in adapter.entries():
        if entry.path in adapter.taken and not isinstance(module, LoRALayer):
            assert entry.adapter is not None
            raise ModelError(
                f"`{adapter.name}` took its start from the base weight of `{entry.path}`, and a part of "
                f"`{entry.adapter.method.name}` is no part of that: use it with the factor 1 or 0, and not by row"
            )


def give_back(adapter: NamedAdapter, plugins: Plugins) -> None:
    """Put what an adapter's start took under the adapter, unless it is there already."""
    for entry, module in adapter.entries():
        pair, below = adapter.taken.get(entry.path), module._modules.get("base_layer")
        # what failed since may have put back the layer that was there before
        if pair is None or adapter.resting.get(entry.path) is below:
            continue
        assert entry.adapter is not None
        own = next(module.parameters(recurse=False))
        # a convolution's hold a kernel
        shapes = {one.name: one.shape for one in entry.adapter.parameters}
        matrices = {
            name: nn.Parameter(value.to(own).view(shapes[name]), requires_grad=False)
            for name, value in zip(("lora_A", "lora_B"), pair, strict=True)
        }
        settings = replace(entry.adapter.settings, dropout=0.0)
        plain = replace(entry, adapter=replace(entry.adapter, method=_LORA, settings=settings))
        assert below is not None
        layer = plugins.method(_LORA).adapt(below, plain, matrices)
        assert isinstance(layer, LoRALayer)
        layer.gives_back, layer.strength = True, 1.0 - adapter.strength
        adapter.resting[entry.path] = module.base_layer = layer.train(module.training)


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
