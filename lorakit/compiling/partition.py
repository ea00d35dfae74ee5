"""What a compiled block keeps for its backward pass, tensor by tensor, and what it computes again there.

Products and attention are what costs time to compute again; norms and activations between them cost little beside what
keeping them takes, and are never kept. What backward does not read, as a block's last product, is not computed again.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.custom_graph_pass import CustomPartitionerFn, get_hash_for_files
from torch.utils.checkpoint import CheckpointPolicy
from torch.utils.flop_counter import flop_registry, register_flop_formula

from lorakit.layers.kernels import product  # noqa: F401  (registers torch.ops.lorakit.product)

# operations that a device does in the time that a byte takes to be read or written: some 150 to 300
OPERATIONS_A_BYTE = 256


@dataclass(frozen=True, slots=True)
class Choice:
    """What may be kept: the bytes of an operation's outputs, and what computing it again costs, in bytes too."""

    node: fx.Node
    bytes: int
    cost: float


class Partitioner(CustomPartitionerFn):
    """Keeps a share of what pays to be kept, what pays most a byte first, and has the rest computed again."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, gm: fx.GraphModule, joint_inputs: Sequence[object], **given: Any) -> Any:
        forward = _forward(gm.graph, given["num_fwd_outputs"])
        choices = list(_choices(forward, _read_by_backward(gm.graph, forward)))
        kept = {choice.node for choice in chosen(choices, self.share)}
        for node in forward:
            # what takes an output out of several follows the operation
            if node.op == "call_function" and node.target is not operator.getitem:
                stays = node in kept or _draws(node)
                node.meta["recompute"] = CheckpointPolicy.MUST_SAVE if stays else CheckpointPolicy.MUST_RECOMPUTE
                node.meta["ac_graph_id"] = 0
        return min_cut_rematerialization_partition(gm, joint_inputs, **given)

    def uuid(self) -> Any:
        return get_hash_for_files((__file__,), str(self.share))


def chosen(choices: Sequence[Choice], share: float) -> list[Choice]:
    """Return what is kept of a share of all bytes: what saves most time a byte, of equal ones the smaller first."""
    room = share * sum(choice.bytes for choice in choices)
    taken = []
    for choice in sorted(choices, key=lambda one: (-one.cost / one.bytes, one.bytes)):
        if choice.bytes <= room:
            taken.append(choice)
            room -= choice.bytes
    return taken


def _forward(graph: fx.Graph, outputs: int) -> dict[fx.Node, None]:
    """Return the nodes that the first outputs come of, in the graph's order."""
    (results,) = next(node for node in graph.nodes if node.op == "output").args
    assert isinstance(results, Sequence)
    return _ancestors(graph, [one for one in results[:outputs] if isinstance(one, fx.Node)])


def _read_by_backward(graph: fx.Graph, forward: dict[fx.Node, None]) -> dict[fx.Node, None]:
    """Return what backward reads of a forward pass, itself or to compute something of it again."""
    return _ancestors(graph, [node for node in graph.nodes if node not in forward and node.op != "output"])


def _ancestors(graph: fx.Graph, nodes: Sequence[fx.Node]) -> dict[fx.Node, None]:
    found = set(nodes)
    for node in reversed(graph.nodes):
        if node in found:
            found.update(node.all_input_nodes)
    return {node: None for node in graph.nodes if node in found}


def _choices(forward: dict[fx.Node, None], read: dict[fx.Node, None]) -> Iterator[Choice]:
    for node in forward:
        if node.target is torch.ops.lorakit.merged_4bit.default or node not in read:
            # a weight of two bytes takes more room than it takes time to write again
            continue
        operations = _operations(node)
        outputs = (
            (node,) if isinstance(node.meta.get("val"), Tensor) else tuple(one for one in node.users if one in read)
        )
        size = sum(_bytes(one) for one in outputs)
        if operations and size:
            yield Choice(node, size, operations / OPERATIONS_A_BYTE + size)


@register_flop_formula(torch.ops.lorakit.product)
def _of_product(x: Sequence[int], *others: Any, out_shape: Sequence[int], **kwargs: Any) -> int:
    """Return the operations of a product that was left apart, by the shapes of its input and output."""
    return 2 * math.prod(x) * out_shape[-1]


def _operations(node: fx.Node) -> int:
    count = flop_registry.get(getattr(node.target, "overloadpacket", None))
    if count is None:
        return 0
    args: Any
    kwargs: Any
    args, kwargs = fx.map_arg((node.args, node.kwargs), _value)
    result = node.meta.get("val")
    try:
        return int(count(*args, **kwargs, out_val=result))
    except AssertionError:
        # torch counts attention whose keys have as many heads as its queries
        query, *others = args
        keys = [one.new_empty((*query.shape[:2], *one.shape[2:]), device="meta") for one in others[:2]]
        return int(count(query, *keys, *others[2:], **kwargs, out_val=result))


def _value(node: fx.Node) -> Any:
    return node.meta.get("val")


def _draws(node: fx.Node) -> bool:
    """Return whether an operation draws random numbers; attention does for its dropout alone."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    schema: Any = node.target
    given = dict(zip((one.name for one in schema._schema.arguments), node.args, strict=False)) | node.kwargs
    return given.get("dropout_p") != 0.0


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    return int(value.numel()) * value.element_size() if isinstance(value, Tensor) else 0
