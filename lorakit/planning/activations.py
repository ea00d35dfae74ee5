"""What a step keeps for its backward pass, in bytes for each row: of which blocks, and when it is the most.

A block is a member of the outermost numbered container, such as a decoder layer. One that is computed again keeps what
enters it (gradient checkpointing: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorakit.planning.dataflow import Kept
from lorakit.planning.inventory import Inventory, ModuleInfo
from lorakit.planning.place import Place
from lorakit.planning.plan import PlanEntry
from lorakit.planning.targets import block_of

# transformers computes norms and the loss in float32, whatever the model's dtype
FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class Block:
    """What one block keeps for each row, in bytes, and whether it gives the same when it is computed again."""

    path: str
    size: int
    repeats: bool


@dataclass(frozen=True, slots=True)
class Activations:
    """What is kept for each row, in bytes: by the blocks in their order, `outside` of them, by the loss.

    `entering` is what enters a block, and is all that one keeps that is computed again.
    """

    blocks: tuple[Block, ...]
    entering: int
    outside: int
    loss: int

    def first(self, count: int) -> tuple[str, ...]:
        """Return the first so many blocks that can be computed again: when they are, later ones are let go already."""
        return tuple(block.path for block in self.blocks if block.repeats)[:count]

    def most(self, recomputed: Sequence[str]) -> int:
        """Return the most bytes that are kept at a time: at the end of the forward pass, or while a block comes again.

        The loss's are gone when the first block is computed again.
        """
        again = frozenset(recomputed)
        kept, most = self.outside, 0
        for block in self.blocks:
            kept += self.entering if block.path in again else block.size
            if block.path in again:
                most = max(most, kept + block.size)
        return max(most, kept + self.loss)


def activations_of(
    inventory: Inventory, entries: Sequence[PlanEntry], itemsize: int, *, by_chunks: bool
) -> Activations:
    """Return what a step keeps for each row; what layers compute has elements of `itemsize` bytes.

    The loss keeps its softmax, or, where it comes by chunks, the gradient of what enters the head.
    """
    kept = inventory.kept or _guessed(inventory, itemsize)
    blocks = _with_adapters(kept, inventory, entries, itemsize)
    outside = blocks.pop("", 0)
    vocabulary, width = head_of(inventory)
    counting = {block_of(path) for path, module in inventory.modules.items() if "BatchNorm" in module.class_name}
    return Activations(
        tuple(Block(path, size, path not in counting) for path, size in blocks.items()),
        -(-kept.entering // max(len(blocks), 1)),
        outside,
        itemsize * width if by_chunks else FLOAT32 * vocabulary,
    )


def head_of(inventory: Inventory) -> tuple[int, int]:
    """Return (out_features, in_features) of the output head; (0, 0) where there is none."""
    head = inventory.modules.get(inventory.output_path) if inventory.output_path else None
    return (head.shape.out_features, head.shape.in_features) if head and head.shape else (0, 0)


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
