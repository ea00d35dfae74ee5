"""The memory forecast: weights, adapters, gradients and optimizer state by count, activations by estimate."""

from __future__ import annotations

from collections.abc import Sequence

from lorakit.planning.computing import dequantized_bytes, held_itemsize, widened_bytes
from lorakit.planning.hardware import Compute
from lorakit.planning.inventory import Inventory, ModuleInfo
from lorakit.planning.plan import Memory, PlanEntry

# transformers computes norms and the loss in float32, whatever the model's dtype
FLOAT32 = 4


def forecast(
    inventory: Inventory, entries: Sequence[PlanEntry], batch: int, tokens: int, compute: Compute | None = None
) -> Memory:
    """Return what one training step on batch × tokens holds, in bytes; nothing is recomputed in the backward pass."""
    changed = sum(entry.bytes.weight_before - entry.bytes.weight_after for entry in entries)
    changed -= widened_bytes(inventory, entries, compute)
    itemsize = max((held_itemsize(parameter, compute) for parameter in inventory.unique_parameters()), default=2)
    weight = max((dequantized_bytes(entry, compute) for entry in entries if entry.quant), default=0)
    return Memory(
        weights_before=inventory.total_bytes,
        weights=inventory.total_bytes - changed + sum(entry.bytes.extra for entry in entries),
        adapters=sum(entry.bytes.adapter for entry in entries),
        gradients=sum(entry.bytes.gradient for entry in entries),
        optimizer=sum(entry.bytes.optimizer for entry in entries),
        activations=batch * tokens * _saved_per_token(inventory, entries, itemsize),
        workspace=max(weight, batch * tokens * _loss_per_token(inventory, itemsize)),
        batch=batch,
        tokens=tokens,
    )


def _saved_per_token(inventory: Inventory, entries: Sequence[PlanEntry], itemsize: int) -> int:
    """Estimate the bytes that autograd keeps for one token, from the structure alone.

    A block's Linear-like layers give what attention and activation functions keep: the outputs of all but the last of a
    parent, whose own output goes to the residual and whose input stands for what the function before it keeps. A norm
    keeps its input, an adapter its input, once for all that read the same, and A·x. The loss keeps the softmax.
    """
    total = 0
    for siblings in _siblings(inventory).values():
        *inner, last = siblings
        total += itemsize * sum(module.shape.out_features for module in inner if module.shape)
        total += itemsize * (last.shape.in_features if last.shape and inner else 0)
    for module in inventory.modules.values():
        weight = module.weight
        if weight is not None and len(weight.shape) == 1 and "norm" in module.class_name.lower():
            total += weight.numel * (FLOAT32 if "rms" in module.class_name.lower() else itemsize)
    inputs = {(_parent(entry.path), entry.shape.in_features) for entry in entries if entry.adapter and entry.shape}
    total += itemsize * sum(in_features for _, in_features in inputs)
    total += itemsize * sum(entry.adapter.rank for entry in entries if entry.adapter and entry.adapter.rank)
    return total + FLOAT32 * _vocabulary(inventory)


def _loss_per_token(inventory: Inventory, itemsize: int) -> int:
    """Return the bytes of the logits, their float32 copy and its gradient, which the loss needs for a moment."""
    return (itemsize + 2 * FLOAT32) * _vocabulary(inventory)


def _vocabulary(inventory: Inventory) -> int:
    head = inventory.modules.get(inventory.output_path) if inventory.output_path else None
    return head.shape.out_features if head and head.shape else 0


def _siblings(inventory: Inventory) -> dict[str, list[ModuleInfo]]:
    """Return the Linear-like layers by their parent, in the model's order, without the output head."""
    found: dict[str, list[ModuleInfo]] = {}
    for path, module in inventory.modules.items():
        if module.shape is not None and module.shape.is_linear and path != inventory.output_path:
            found.setdefault(_parent(path), []).append(module)
    return found


def _parent(path: str) -> str:
    return path.rpartition(".")[0]
