"""The memory forecast: weights, adapters, gradients and optimizer state by count, activations by estimate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lorakit.planning.inventory import Inventory
from lorakit.planning.plan import Memory, PlanEntry


def forecast(inventory: Inventory, entries: Sequence[PlanEntry], batch: int, tokens: int) -> Memory:
    """Return what one training step on batch × tokens holds, in bytes; activations without checkpointing."""
    changed = sum(entry.bytes.weight_before - entry.bytes.weight_after for entry in entries)
    return Memory(
        weights_before=inventory.total_bytes,
        weights=inventory.total_bytes - changed + sum(entry.bytes.extra for entry in entries),
        adapters=sum(entry.bytes.adapter for entry in entries),
        gradients=sum(entry.bytes.gradient for entry in entries),
        optimizer=sum(entry.bytes.optimizer for entry in entries),
        activations=batch * tokens * _activation_bytes_per_token(inventory, entries),
        workspace=max((entry.bytes.weight_before for entry in entries if entry.quant), default=0),
        batch=batch,
        tokens=tokens,
    )


def _activation_bytes_per_token(inventory: Inventory, entries: Iterable[PlanEntry]) -> int:
    """Estimate what autograd keeps for one token of the forward pass.

    Counted by structure: the output of every Linear-like layer once, what a norm keeps (its input and its normalized
    input in float32), what an adapter keeps (A·x), and the head's logits with a float32 copy and the loss's softmax.
    """
    itemsize = max((parameter.itemsize for parameter in inventory.unique_parameters()), default=2)
    total = 0
    for path, module in inventory.modules.items():
        if module.shape is not None:
            total += module.shape.out_features * (itemsize + (8 if path == inventory.output_path else 0))
        elif "norm" in module.class_name.lower() and module.weight is not None:
            total += module.weight.numel * (8 + itemsize)
    return total + sum(entry.adapter.rank * itemsize for entry in entries if entry.adapter and entry.adapter.rank)
