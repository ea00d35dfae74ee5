"""A step's memory on each of several devices over which `lorakit.shard` spreads a model: parts, and what is gathered.

A tensor is split on its first dimension, and the first device has the most rows (torch's FSDP2). A block is a piece
that is gathered whole while it computes, with the one after it; what is outside of blocks stays gathered all through.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from lorakit.dtypes import itemsize
from lorakit.planning.computing import held_itemsize
from lorakit.planning.hardware import Compute
from lorakit.planning.inventory import Inventory, ModuleInfo, ParameterInfo
from lorakit.planning.place import Place
from lorakit.planning.plan import Memory, PlanEntry
from lorakit.planning.targets import block_of

# the block that computes, and the one that comes while it does
AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor: the bytes of all of it and of the largest part, and the blocks that it lies in."""

    whole: int
    part: int
    blocks: frozenset[str]
    trains: bool
    added: bool

    @property
    def is_of_several(self) -> bool:
        return len(self.blocks) > 1


def spread(memory: Memory, inventory: Inventory, entries: Sequence[PlanEntry], compute: Compute | None) -> Memory:
    """Return what each of the devices holds that a forecast of all of it names."""
    tensors = list(_tensors(inventory, entries, compute, memory.devices))
    replicates = memory.frozen == "replicate"
    in_one = replicates or any(one.trains and one.is_of_several for one in tensors)
    shards = {one: one.trains or not (replicates or one.is_of_several) for one in tensors}
    pieces: dict[str, int] = {}
    for one in tensors:
        if shards[one]:
            piece = "" if in_one else next(iter(one.blocks))
            # its gradient is whole too until all have added theirs
            pieces[piece] = pieces.get(piece, 0) + one.whole * (1 + one.trains)
    always = pieces.pop("", 0)
    held = [(one, one.part if shards[one] else one.whole) for one in tensors]
    trained = sum(one.whole for one in tensors if one.trains)
    own = sum(one.part for one in tensors if one.trains)
    return replace(
        memory,
        weights=sum(size for one, size in held if not one.added) + sum(entry.bytes.extra for entry in entries),
        adapters=sum(size for one, size in held if one.added),
        gradients=own,
        optimizer=-(-memory.optimizer * own // trained) if trained else memory.optimizer,
        gathered=always + sum(sorted(pieces.values())[-AT_ONCE:]),
    )


def _tensors(
    inventory: Inventory, entries: Sequence[PlanEntry], compute: Compute | None, count: int
) -> Iterator[_Tensor]:
    decided = {entry.path: entry for entry in entries}
    seen: set[int] = set()
    trains = {
        parameter.weight_id
        for path, entry in decided.items()
        for parameter in inventory.modules[path].parameters
        if entry.train or (entry.adapter and entry.adapter.bias == "adapter" and parameter.name == "bias")
    }
    for path, module in inventory.modules.items():
        for parameter in module.parameters:
            if parameter.weight_id not in seen:
                seen.add(parameter.weight_id)
                whole, part = _sizes(module, parameter, decided.get(path), compute, count)
                blocks = frozenset(block_of(name) for name in inventory.owners[parameter.weight_id])
                yield _Tensor(whole, part, blocks, parameter.weight_id in trains, added=False)
    yield from _added(entries, count)


def _sizes(
    module: ModuleInfo, parameter: ParameterInfo, entry: PlanEntry | None, compute: Compute | None, count: int
) -> tuple[int, int]:
    """Return the bytes of a parameter of the model's own, and of its largest part."""
    if entry is not None and entry.quant and parameter is module.weight:
        whole = entry.bytes.weight_after - entry.bytes.weight_before + parameter.bytes
        return whole, -(-whole // count)
    whole = parameter.bytes + parameter.numel * (held_itemsize(parameter, compute) - parameter.itemsize)
    if parameter.stored_bytes is not None:
        return whole, -(-whole // count)
    return whole, _part(parameter.shape, whole, count)


def _added(entries: Sequence[PlanEntry], count: int) -> Iterator[_Tensor]:
    """Yield what adapters add, what layers share once."""
    blocks: dict[str, set[str]] = {}
    for entry in entries:
        for one in entry.adapter.parameters if entry.adapter else ():
            if one.shared:
                blocks.setdefault(one.shared, set()).add(block_of(entry.path))
    shared: Mapping[str, frozenset[str]] = {name: frozenset(found) for name, found in blocks.items()}
    seen: set[str] = set()
    for entry in entries:
        for one in entry.adapter.parameters if entry.adapter else ():
            if one.shared in seen:
                continue
            assert entry.adapter is not None
            whole = math.prod(one.shape) * itemsize(one.dtype or entry.adapter.dtype)
            here = frozenset({block_of(Place(entry.path).inside(one.name))})
            if one.shared:
                seen.add(one.shared)
                here = shared[one.shared]
            yield _Tensor(whole, _part(one.shape, whole, count), here, one.trains, added=True)


def _part(shape: tuple[int, ...], whole: int, count: int) -> int:
    """Return the bytes of the largest of so many parts; what has no dimension is in one."""
    if not shape or not shape[0]:
        return whole
    return whole // shape[0] * -(-shape[0] // count)
