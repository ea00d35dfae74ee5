"""Forward, loss and backward as CUDA graphs: one launch in place of thousands, for each form that batches come in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.stepping.batches import parts_of
from lorakit.stepping.before import Before
from lorakit.stepping.graphs import PASSES, reason, told_so, without_waiting
from lorakit.stepping.losses import Learning
from lorakit.stepping.padding import Padding
from lorakit.stepping.shortage import free_caches, let_go

# forms of batches; each has a graph, which takes some MiB beside the memory that all share
MOST = 24


@dataclass(frozen=True, slots=True)
class Graph:
    """One captured pass: what it reads, and the loss and the gradients that it leaves in the same place each time."""

    graph: torch.cuda.CUDAGraph
    inputs: Mapping[Any, Tensor]
    share: Tensor
    loss: Tensor
    gradients: Mapping[nn.Parameter, Tensor]
    addresses: Sequence[int]

    def stands(self) -> bool:
        """Return whether the parameters that it trains still train, and lie where they did."""
        return all(
            parameter.requires_grad and parameter.data_ptr() == address
            for parameter, address in zip(self.gradients, self.addresses, strict=True)
        )

    def replay(self) -> Tensor:
        """Run the pass, add its gradients to those of its parameters, and return its loss."""
        before = {one: one.grad for one in self.gradients if one.grad is not None}
        for parameter, gradient in before.items():
            if gradient is self.gradients[parameter]:
                # of a batch before in the same step
                before[parameter] = gradient.clone()
        self.graph.replay()
        for parameter, gradient in self.gradients.items():
            parameter.grad = before.get(parameter, gradient)
        if before:
            torch._foreach_add_(list(before.values()), [self.gradients[one] for one in before])
        return self.loss.clone()


class Captured:
    """The passes of one model over batches, each form of which is captured when it first comes.

    A form is the shapes and dtypes of a batch, once its rows are padded to one of a few lengths. `say` gets a line
    where one cannot be captured; it is computed as ever then.
    """

    def __init__(self, model: nn.Module, learning: Learning, say: Callable[[str], None]) -> None:
        self._model = model
        self._learning = learning
        self._say = say
        self._padding = Padding(model, learning)
        self._graphs: dict[Any, Graph | None] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def take(self, batch: Any, share: float) -> Tensor | None:
        """Add the gradients of a batch's loss, weighed by a share, and return that loss; None where it has no graph."""
        batch = self._padding.padded(batch)
        parts = parts_of(batch)
        if not all(isinstance(value, Tensor) for value in parts.values()):
            return None
        key = (
            self._model.training,
            torch.is_autocast_enabled("cuda"),
            *((name, value.shape, value.dtype) for name, value in parts.items()),
        )
        if key not in self._graphs:
            self._graphs[key] = self._made(batch, parts) if len(self._graphs) < MOST else None
        graph = self._graphs[key]
        if graph is not None and not graph.stands():
            # other adapters train now, or others of these values: none of the graphs is of them
            self._graphs.clear()
            graph = self._graphs[key] = self._made(batch, parts)
        if graph is None:
            return None
        for name, value in parts.items():
            # from memory that is not pinned the device would be waited for
            graph.inputs[name].copy_(value if value.is_cuda else value.pin_memory(), non_blocking=True)
        graph.share.fill_(share)
        return graph.replay()

    def _made(self, batch: Any, parts: Mapping[Any, Tensor]) -> Graph | None:
        device = next(self._model.parameters()).device
        before = Before.of(self._model)
        try:
            inputs = {name: value.to(device, copy=True) for name, value in parts.items()}
            filled = inputs if isinstance(batch, Mapping) else tuple(inputs.values())
            return self._recorded(filled, inputs, torch.ones((), device=device), before)
        except Exception as error:
            why = reason(error)
            let_go(error)
        before.restore()
        free_caches(thoroughly=True)
        self._say(f"capture: a batch of {_shapes(parts)} runs one operation after the other: {why}")
        return None

    def _recorded(self, batch: Any, inputs: Mapping[Any, Tensor], share: Tensor, before: Before) -> Graph:
        trained = [one for one in self._model.parameters() if one.requires_grad]
        self._stream.wait_stream(torch.cuda.current_stream())
        # compiled code is of one answer to whether it is captured
        with told_so():
            with torch.cuda.stream(self._stream):
                for number in range(PASSES):
                    for parameter in trained:
                        parameter.grad = None
                    with without_waiting() if number == PASSES - 1 else nullcontext():
                        self._pass(batch, share)
            torch.cuda.current_stream().wait_stream(self._stream)
            # the graph makes its own, into which it writes and does not add
            for parameter in trained:
                parameter.grad = None
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                loss = self._pass(batch, share)
        gradients = {one: one.grad for one in trained if one.grad is not None}
        before.restore()
        return Graph(graph, inputs, share, loss, gradients, [one.data_ptr() for one in gradients])

    def _pass(self, batch: Any, share: Tensor) -> Tensor:
        loss = self._learning.loss(self._model, batch) * share
        loss.backward()
        return loss.detach()


def _shapes(parts: Mapping[Any, Tensor]) -> str:
    return ", ".join(f"{name} {' × '.join(map(str, value.shape))}" for name, value in parts.items())
