"""One token of a model as a CUDA graph: what it reads lies in tensors of its own, and its cache counts on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorakit.generating.cache_state import CacheState, Place, put
from lorakit.stepping.graphs import PASSES, told_so, without_waiting


@dataclass(frozen=True, slots=True, eq=False)
class Token:
    """A captured pass: its inputs by name, and what it returns, in the same memory each time."""

    graph: torch.cuda.CUDAGraph
    inputs: Mapping[Any, Tensor]
    outputs: Any
    counters: list[tuple[Place, int]]

    def replay(self, values: Mapping[Any, Tensor]) -> Any:
        """Return what the pass returns for these values, in memory of its own."""
        for name, value in values.items():
            self.inputs[name].copy_(value, non_blocking=True)
        self.graph.replay()
        for (owner, name), step in self.counters:
            put((owner, name), (owner[name] if isinstance(owner, dict | list) else getattr(owner, name)) + step)
        return copied(self.outputs)


def capture(
    run: Callable[[], Any], inputs: Mapping[Any, Tensor], cache: Any, pool: Any, stream: torch.cuda.Stream
) -> Token:
    """Return a pass over a cache as a graph; the cache is as before then. Raises: whatever the pass raises."""
    before = CacheState.of(cache)
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with told_so():
            with torch.cuda.stream(stream):
                for number in range(PASSES):
                    with without_waiting() if number == PASSES - 1 else nullcontext():
                        run()
                    if before.moved(cache):
                        raise ValueError("its cache makes new tensors for each token")
                    counters = before.counted(cache)
                    before.restore()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                outputs = run()
    finally:
        torch.cuda.current_stream().wait_stream(stream)
        before.restore()
    return Token(graph, inputs, outputs, counters)


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
