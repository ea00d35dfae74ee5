"""Which products of a traced block read one input: they are put together, whatever model the block is of."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from lorakit.compiling.products import Group, together
from lorakit.layers.kernels.merging import NAMES
from lorakit.layers.kernels.product import FORMS

# an op's arguments, as `product` has them
X, BIAS, STORED, PAIRS, SCALINGS, NAMED, FORM = range(7)


def group(module: fx.GraphModule) -> int:
    """Put together what reads one input in a traced module, and return how many products were, in how many groups."""
    graph = module.graph
    place = {node: number for number, node in enumerate(graph.nodes)}
    found: dict[Any, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.target is not torch.ops.lorakit.product.default or not _is_mergeable(node):
            continue
        key = (node.args[X], FORMS[node.args[FORM]].merge, FORMS[node.args[FORM]].shape[1], node.args[NAMED])
        members = found.setdefault(key, [])
        # what a later one reads has to be there before the first
        if all(place[one] < place[members[0] if members else node] for one in node.all_input_nodes):
            members.append(node)
        else:
            found[(*key, node)] = [node]
    for members in found.values():
        _put_together(graph, members)
    graph.lint()
    module.recompile()
    return len(found)


def _is_mergeable(node: fx.Node) -> bool:
    form = FORMS[node.args[FORM]]
    names = node.args[NAMED].split(",")
    return form.merge is not None and tuple(names) == NAMES[: len(names)]


def _put_together(graph: fx.Graph, members: list[fx.Node]) -> None:
    first = members[0]
    shapes = [FORMS[node.args[FORM]].shape for node in members]
    what = Group(
        FORMS[first.args[FORM]].merge,
        tuple(shape[0] for shape in shapes),
        shapes[0][1],
        tuple(len(node.args[SCALINGS]) for node in members),
        tuple(scaling for node in members for scaling in node.args[SCALINGS]),
    )
    with graph.inserting_before(first):
        made = graph.call_function(
            together,
            (
                first.args[X],
                [node.args[BIAS] for node in members],
                [list(node.args[STORED]) for node in members],
                [pair for node in members for pair in node.args[PAIRS]],
                what,
            ),
        )
        for number, node in enumerate(members):
            part = graph.call_function(operator.getitem, (made, number))
            part.meta = {name: node.meta[name] for name in ("example_value", "stack_trace") if name in node.meta}
            node.replace_all_uses_with(part)
    for node in members:
        graph.erase_node(node)
