"""One token of a model as a CUDA graph: what it reads lies in tensors of its own, and its cache counts on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lorakit.generating.cache_state import CacheState, Place, put
from lorakit.stepping.graphs import PASSES, told_so, without_waiting

# where the next token lies among inputs
TOKENS = {"", ("input_ids",)}


@dataclass(frozen=True, slots=True, eq=False)
class Token:
    """A captured pass: its inputs by name, and what it returns, in the same memory each time."""

    graph: torch.cuda.CUDAGraph
    inputs: Mapping[Any, Tensor]
    outputs: Any
    counters: list[tuple[Place, int]]
    # what the graph reads and runs, and others may let go
    kept: Sequence[Any] = ()

    def replay(self, values: Mapping[Any, Tensor]) -> Any:
        """Return what the pass returns for these values, in memory of its own."""
        for name, value in values.items():
            self.inputs[name].copy_(value, non_blocking=True)
        self.graph.replay()
        for (owner, name), step in self.counters:
            put((owner, name), (owner[name] if isinstance(owner, dict | list) else getattr(owner, name)) + step)
        return copied(self.outputs)


# from a function, what changes its inputs and what puts back what it writes, to one that computes the same, and what to
# keep for it
Fuse = Callable[[Callable[[], Any], Callable[[], None], Callable[[], None]], tuple[Callable[[], Any], Sequence[Any]]]


class Capture:
    """Makes graphs of passes, which share their memory and the stream that they are captured on."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def __call__(
        self, run: Callable[[], Any], inputs: Mapping[Any, Tensor], cache: Any, fuse: Fuse | None = None
    ) -> Token:
        """Return a pass over a cache, fused if asked for, as a graph; the cache is as before then.

        Raises: whatever the pass raises.
        """
        before = CacheState.of(cache)
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with told_so():
                with torch.cuda.stream(self._stream):
                    run, counters, kept = prepared(run, inputs, cache, before, fuse)
                torch.cuda.current_stream().wait_stream(self._stream)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                    outputs = run()
        finally:
            torch.cuda.current_stream().wait_stream(self._stream)
            before.restore()
        return Token(graph, inputs, outputs, counters, kept)


def prepared(
    run: Callable[[], Any], inputs: Mapping[Any, Tensor], cache: Any, before: CacheState, fuse: Fuse | None
) -> tuple[Callable[[], Any], list[tuple[Place, int]], Sequence[Any]]:
    """Return a pass that ran before, what it counts in Python, and what to keep; the cache is as before then."""
    run()
    if before.moved(cache):
        raise ValueError("its cache makes new tensors for each token")
    counters = before.counted(cache)
    before.restore()
    kept: Sequence[Any] = ()
    if fuse is not None:
        run, kept = fuse(run, partial(_change, inputs), before.restore)
    for number in range(1, PASSES):
        with without_waiting() if number == PASSES - 1 else nullcontext():
            run()
        if before.moved(cache):
            raise ValueError("its cache makes new tensors for each token")
        before.restore()
    return run, counters, kept


def _change(inputs: Mapping[Any, Tensor]) -> None:
    """Make other tokens of those among the inputs."""
    for name in TOKENS & inputs.keys():
        inputs[name].copy_(torch.where(inputs[name] > 0, inputs[name] - 1, 1))


def copied(value: Any) -> Any:
    """Return outputs with their tensors copied; what is no tensor, dict, list or tuple stays, such as a cache."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        held = {name: copied(inner) for name, inner in value.items()}
        return held if type(value) is dict else type(value)(**held)
    if type(value) in (list, tuple):
        return type(value)(copied(inner) for inner in value)
    return value
