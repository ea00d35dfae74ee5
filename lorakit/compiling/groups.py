"""Which products of a traced block read one input: they are put together, whatever model the block is of."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from lorakit.compiling.products import Group, together
from lorakit.layers.kernels.merging import NAMES
from lorakit.layers.kernels.product import FORMS, Form


class _Product:
    """A traced call of the op, by the names of its arguments."""

    def __init__(self, node: fx.Node) -> None:
        given: Any = node.args
        self.node = node
        self.x, self.bias, self.stored, self.pairs, self.scalings, self.names, form = given
        self.form: Form = FORMS[form]

    @property
    def kind(self) -> Any:
        """What has to be alike to be put together; None where this cannot be."""
        names = tuple(self.names.split(","))
        if self.form.merge is None or names != NAMES[: len(names)]:
            return None
        return self.x, self.form.merge, self.form.shape[1], names


def group(module: fx.GraphModule) -> int:
    """Put together what reads one input in a traced module, and return how many groups were made."""
    graph = module.graph
    place = {node: number for number, node in enumerate(graph.nodes)}
    found: dict[Any, list[_Product]] = {}
    for node in graph.nodes:
        if node.target is not torch.ops.lorakit.product.default:
            continue
        product = _Product(node)
        if product.kind is None:
            continue
        members = found.setdefault(product.kind, [])
        # what a later one reads has to be there before the first
        if members and any(place[one] > place[members[0].node] for one in node.all_input_nodes):
            members = found[product.kind, node] = []
        members.append(product)
    for members in found.values():
        _put_together(graph, members)
    graph.lint()
    module.recompile()
    return len(found)


def _put_together(graph: fx.Graph, members: Sequence[_Product]) -> None:
    first = members[0]
    assert first.form.merge is not None
    what = Group(
        *first.form.merge,
        tuple(one.form.shape[0] for one in members),
        first.form.shape[1],
        tuple(len(one.scalings) for one in members),
        tuple(scaling for one in members for scaling in one.scalings),
    )
    given: Any = (
        first.x,
        [one.bias for one in members],
        [list(one.stored) for one in members],
        [pair for one in members for pair in one.pairs],
        what,
    )
    with graph.inserting_before(first.node):
        made = graph.call_function(together, given)
        for number, one in enumerate(members):
            part = graph.call_function(operator.getitem, (made, number))
            part.meta = {name: one.node.meta[name] for name in _KEPT if name in one.node.meta}
            one.node.replace_all_uses_with(part)
    for one in members:
        graph.erase_node(one.node)


_KEPT = ("example_value", "stack_trace")
