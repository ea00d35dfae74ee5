"""The memory forecast: weights, adapters, gradients and optimizer state by count, and what autograd keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorakit.planning.computing import dequantized_bytes, held_itemsize, widened_bytes
from lorakit.planning.dataflow import Kept
from lorakit.planning.hardware import Compute
from lorakit.planning.inventory import Inventory, ModuleInfo
from lorakit.planning.place import Place
from lorakit.planning.plan import Memory, PlanEntry
from lorakit.planning.targets import block_of

# transformers computes norms and the loss in float32, whatever the model's dtype
FLOAT32 = 4


def forecast(
    inventory: Inventory,
    entries: Sequence[PlanEntry],
    step: Memory,
    compute: Compute | None = None,
    *,
    shared_state: int = 0,
) -> Memory:
    """Return what one training step holds, in bytes, for the batch × tokens of `step`.

    The optimizer's state is that of the entries, and what is one for all.
    """
    rows = step.batch * step.tokens
    changed = sum(entry.bytes.weight_before - entry.bytes.weight_after for entry in entries)
    changed -= widened_bytes(inventory, entries, compute)
    own, itemsize = _itemsize(inventory), _itemsize(inventory, compute)
    weight = max((dequantized_bytes(entry, compute) for entry in entries if entry.quant), default=0)
    return Memory(
        weights_before=inventory.total_bytes,
        weights=inventory.total_bytes - changed + sum(entry.bytes.extra for entry in entries),
        adapters=sum(entry.bytes.adapter for entry in entries),
        gradients=sum(entry.bytes.gradient for entry in entries),
        optimizer=sum(entry.bytes.optimizer for entry in entries) + shared_state,
        # what is kept grows as the weights do that make it
        activations=rows * _activations(inventory, entries, step.recompute, own) * itemsize // own,
        workspace=max(weight, rows * (itemsize + 2 * FLOAT32) * _vocabulary(inventory)),
        batch=step.batch,
        tokens=step.tokens,
        recompute=step.recompute,
        of_tokens=inventory.input_path is not None,
        paged=step.paged,
    )


def _activations(inventory: Inventory, entries: Sequence[PlanEntry], recompute: bool, itemsize: int) -> int:
    """Return the bytes that are kept for each row until the backward pass, at the worst moment of a step.

    What layers compute has elements of `itemsize` bytes. The loss keeps its softmax. Where blocks are recomputed, what
    enters them is kept, and of one block all the rest; the softmax is gone when the first of them is computed again.
    """
    kept = inventory.kept or _guessed(inventory, itemsize)
    blocks = _with_adapters(kept, inventory, entries, itemsize)
    outside, loss = blocks.pop("", 0), FLOAT32 * _vocabulary(inventory)
    if recompute:
        return kept.entering + outside + max(loss, *blocks.values(), 0)
    return sum(blocks.values()) + outside + loss


def _with_adapters(kept: Kept, inventory: Inventory, entries: Sequence[PlanEntry], itemsize: int) -> dict[str, int]:
    """Return what blocks keep with adapters: A·x for each, and x once for all that read the same.

    A layer that trains keeps its x too. Of a lookup's tokens nothing is kept that matters.
    """
    blocks = dict(kept.blocks)
    counted: set[object] = set(kept.inputs)
    for entry in entries:
        block = block_of(entry.path)
        adapter, shape = entry.adapter, entry.shape
        if adapter is not None and adapter.settings.rank:
            blocks[block] = blocks.get(block, 0) + itemsize * adapter.settings.rank
        if shape is None or shape.kind == "embedding" or not (adapter or entry.train):
            continue
        number = inventory.modules[entry.path].input
        source = (Place(entry.path).holder, shape.in_features) if number is None else number
        if source not in counted:
            counted.add(source)
            blocks[block] = blocks.get(block, 0) + itemsize * shape.in_features
    return blocks


def _guessed(inventory: Inventory, itemsize: int) -> Kept:
    """Estimate what autograd keeps where the model could not be run, from its structure alone.

    A block's Linear-like layers give what attention and activation functions keep: the outputs of all but the last of a
    parent, whose own output goes to the residual and whose input stands for what the function before it keeps. A norm
    keeps its input. What enters a block is as wide as the input of its first layer.
    """
    blocks: dict[str, int] = {}
    siblings = _siblings(inventory)
    for parent, (*inner, last) in siblings.items():
        size = itemsize * sum(module.shape.out_features for module in inner if module.shape)
        size += itemsize * (last.shape.in_features if last.shape and inner else 0)
        blocks[block_of(parent)] = blocks.get(block_of(parent), 0) + size
    for path, module in inventory.modules.items():
        weight = module.weight
        if weight is not None and len(weight.shape) == 1 and "norm" in module.class_name.lower():
            size = weight.numel * (FLOAT32 if "rms" in module.class_name.lower() else itemsize)
            blocks[block_of(path)] = blocks.get(block_of(path), 0) + size
    return Kept(blocks, itemsize * sum(_widths(siblings).values()))


def _widths(siblings: Mapping[str, Sequence[ModuleInfo]]) -> dict[str, int]:
    """Return how wide the input of each block's first layer is."""
    widths: dict[str, int] = {}
    for parent, (first, *_) in siblings.items():
        if (block := block_of(parent)) and first.shape:
            widths.setdefault(block, first.shape.in_features)
    return widths


def _siblings(inventory: Inventory) -> dict[str, list[ModuleInfo]]:
    """Return the Linear-like layers by their parent, in the model's order, without the output head."""
    found: dict[str, list[ModuleInfo]] = {}
    for path, module in inventory.modules.items():
        if module.shape is not None and module.shape.is_linear and path != inventory.output_path:
            found.setdefault(Place(path).holder, []).append(module)
    return found


def _vocabulary(inventory: Inventory) -> int:
    head = inventory.modules.get(inventory.output_path) if inventory.output_path else None
    return head.shape.out_features if head and head.shape else 0


def _itemsize(inventory: Inventory, compute: Compute | None = None) -> int:
    return max((held_itemsize(parameter, compute) for parameter in inventory.unique_parameters()), default=2)
