"""What stands between two products as one piece, which is compiled once however often a model repeats it."""

from __future__ import annotations

import operator
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map

from lorakit.generating.recording import Form, Operation, Recording, Value

# a piece of one operation is one kernel already
LEAST = 2
# seconds after which no other piece is compiled: what is left runs as it is
SECONDS = 30.0
# compiled pieces that are kept, of all models
MOST = 128

Compile = Callable[[fx.GraphModule, Sequence[Tensor]], Callable[..., Sequence[Tensor]]]


@dataclass(frozen=True, slots=True)
class Piece:
    """Operations as a module from the memory that they read to what others need of theirs."""

    module: fx.GraphModule
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    forms: tuple[Form, ...]
    size: int

    @property
    def key(self) -> Any:
        """What decides which code a compiler makes of it."""
        return self.module.code, self.forms


def piece(operations: Sequence[Operation], needed: set[Value], recording: Recording) -> Piece:
    """Return operations as one piece; `needed` are values that are read elsewhere, none of them a view."""
    graph = fx.Graph()
    nodes: dict[Value, fx.Node] = {}
    inputs: list[Value] = []

    def node(value: Value) -> fx.Node:
        if value in nodes:
            return nodes[value]
        if value in recording.views:
            call(recording.views[value][0])
            return nodes[value]
        inputs.append(value)
        # those of a graph stand before everything else
        with graph.inserting_before(first):
            nodes[value] = graph.placeholder(f"input_{len(inputs)}")
        return nodes[value]

    def call(operation: Operation) -> None:
        args, kwargs = tree_map(
            lambda one: node(one) if isinstance(one, Value) else one, (operation.args, operation.kwargs)
        )
        made = graph.call_function(operation.function, args, kwargs)
        several = [str(one.type) for one in operation.function._schema.returns] != ["Tensor"]
        for index, result in enumerate(operation.results):
            if result is None:
                continue
            if result in nodes and operation.written:
                # the same memory: later reads come after this in the graph
                continue
            nodes[result] = graph.call_function(operator.getitem, (made, index)) if several else made

    first = graph.call_function(_nothing)
    for operation in operations:
        call(operation)
    graph.erase_node(first)
    outputs = tuple(
        value for value in nodes if value in needed and value not in inputs and value not in recording.views
    )
    graph.output(tuple(nodes[value] for value in outputs))
    # no dead code is looked for: what writes is there for its own sake
    module = fx.GraphModule(torch.nn.Module(), graph)
    return Piece(module, tuple(inputs), outputs, tuple(recording.forms[one] for one in inputs), len(operations))


def _nothing() -> None:
    return None


_COMPILED: OrderedDict[Any, Callable[..., Any]] = OrderedDict()


def compiled(pieces: Sequence[Piece], compile: Compile, say: Callable[[str], None]) -> Mapping[Any, Callable[..., Any]]:
    """Return what runs each key's pieces: what is repeated most is compiled first, and nothing once time is up."""
    weights: Counter[Any] = Counter()
    for one in pieces:
        weights[one.key] += one.size
    by_key = {one.key: one for one in pieces}
    begun, ready = time.monotonic(), {}
    for key, _ in weights.most_common():
        one = by_key[key]
        if one.size < LEAST:
            continue
        if key not in _COMPILED:
            if time.monotonic() - begun > SECONDS:
                say(f"generate: compiling took {SECONDS:.0f} s: the rest of a token runs one operation after the other")
                break
            try:
                _COMPILED[key] = compile(one.module, _examples(one.forms))
            except Exception as error:
                say(f"generate: a piece of a token is not compiled: {type(error).__name__}: {str(error)[:200]}")
                continue
        _COMPILED.move_to_end(key)
        ready[key] = _COMPILED[key]
    while len(_COMPILED) > MOST:
        _COMPILED.popitem(last=False)
    return ready


def inductor(module: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Return a module compiled by Inductor."""
    from torch._inductor.compile_fx import compile_fx

    result: Any = compile_fx(module, inputs)
    # torch marks it as called with a list, and has it called so by nobody
    return lambda *given: result(*given)


def _examples(forms: Sequence[Form]) -> list[Tensor]:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    with FakeTensorMode(shape_env=ShapeEnv()):
        return [torch.empty_strided(one.shape, one.stride, dtype=one.dtype, device=one.device) for one in forms]
