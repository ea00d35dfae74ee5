"""The memory forecast: weights, adapters, gradients and optimizer state by count, and what autograd keeps."""

from __future__ import annotations

from collections.abc import Sequence

from lorakit.planning.activations import FLOAT32, activations_of, head_of
from lorakit.planning.computing import dequantized_bytes, held_itemsize, widened_bytes
from lorakit.planning.hardware import Compute
from lorakit.planning.head import chunk_of, rows_at_once
from lorakit.planning.inventory import Inventory
from lorakit.planning.plan import Memory, PlanEntry
from lorakit.planning.spreading import spread

# of the widest layer, that exist beside all that is kept when the backward pass begins
GRADIENTS = 2


def forecast(
    inventory: Inventory,
    entries: Sequence[PlanEntry],
    step: Memory,
    compute: Compute | None = None,
    *,
    shared_state: int = 0,
) -> Memory:
    """Return what one training step holds, in bytes, for the batch × tokens of `step`.

    Where that is more than its limit, as many blocks are computed again as it takes, or as many as help if none do.
    The optimizer's state is that of the entries, and what is one for all.
    """
    rows = step.batch * step.tokens
    vocabulary, _ = head_of(inventory)
    at_once = chunk_of(rows, rows_at_once(vocabulary))
    changed = sum(entry.bytes.weight_before - entry.bytes.weight_after for entry in entries)
    changed -= widened_bytes(inventory, entries, compute)
    own, itemsize = _itemsize(inventory), _itemsize(inventory, compute)
    weight = max((dequantized_bytes(entry, compute) for entry in entries if entry.quant), default=0)
    # for a moment there are two gradients of each logit beside its softmax, which is counted once: where it is kept
    activations = activations_of(inventory, entries, own, by_chunks=rows > at_once)

    def made(recomputed: tuple[str, ...]) -> Memory:
        memory = Memory(
            weights_before=inventory.total_bytes,
            weights=inventory.total_bytes - changed + sum(entry.bytes.extra for entry in entries),
            adapters=sum(entry.bytes.adapter for entry in entries),
            gradients=sum(entry.bytes.gradient for entry in entries),
            optimizer=sum(entry.bytes.optimizer for entry in entries) + shared_state,
            # what is kept grows as the weights do that make it
            activations=rows * activations.most(recomputed) * itemsize // own,
            workspace=max(
                weight + GRADIENTS * rows * _widest(inventory) * itemsize,
                at_once * vocabulary * FLOAT32 * (3 if rows > at_once else 2),
            ),
            batch=step.batch,
            tokens=step.tokens,
            recompute=step.recompute,
            of_tokens=inventory.input_path is not None,
            paged=step.paged,
            limit=step.limit,
            recomputed=recomputed,
            blocks=len(activations.blocks),
            devices=step.devices,
            frozen=step.frozen,
        )
        return spread(memory, inventory, entries, compute) if step.devices > 1 else memory

    every = len(activations.first(len(activations.blocks)))
    if step.recompute:
        return made(activations.first(every))
    tried: list[Memory] = []
    for count in range(every + 1):
        tried.append(made(activations.first(count)))
        if not step.limit or tried[-1].peak <= step.limit:
            return tried[-1]
    # to compute the last block again may take more than it saves: it comes first in the backward pass
    return min(tried, key=lambda memory: memory.peak)


def _widest(inventory: Inventory) -> int:
    shapes = (module.shape for path, module in inventory.modules.items() if path != inventory.output_path)
    return max((shape.out_features for shape in shapes if shape and shape.is_linear), default=0)


def _itemsize(inventory: Inventory, compute: Compute | None = None) -> int:
    return max((held_itemsize(parameter, compute) for parameter in inventory.unique_parameters()), default=2)
