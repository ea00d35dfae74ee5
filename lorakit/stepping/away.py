"""What blocks keep for their backward pass, in pinned CPU memory meanwhile: copies go beside the computing.

Each block's tensors leave on a stream of their own while later blocks compute, and those of the block before come back
while one is in its backward pass. (Rhu et al. 2016, vDNN, arXiv:1602.08124.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# of no use to send less, in bytes
SMALLEST = 1 << 18
# bytes that may be on their way out before computing waits for them
FLYING = 256 << 20


class _Held:
    """One tensor in CPU memory; `back` is its copy on the device once that is on its way."""

    def __init__(self, away: Away, host: Tensor, like: Tensor) -> None:
        self._away, self._host = away, host
        self._size, self._stride, self._device = like.shape, like.stride(), like.device
        self._back: tuple[Tensor, torch.cuda.Event] | None = None

    def fetch(self) -> None:
        """Start its way back."""
        if self._back is None:
            main = torch.cuda.current_stream(self._device)
            tensor = torch.empty_strided(self._size, self._stride, dtype=self._host.dtype, device=self._device)
            stream = self._away.stream
            # what lay in this memory before is done with
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                tensor.as_strided((self._host.numel(),), (1,)).copy_(self._host, non_blocking=True)
                arrived = torch.cuda.Event()
                arrived.record(stream)
            self._back = tensor, arrived

    def take(self) -> Tensor:
        """Return it on the device; a second time it comes anew."""
        self.fetch()
        assert self._back is not None
        (tensor, arrived), self._back = self._back, None
        torch.cuda.current_stream(self._device).wait_event(arrived)
        return tensor

    def __del__(self) -> None:
        self._away.give_back(self._host)


class Away:
    """Sends what blocks of one model keep; `around` is entered for each block's forward pass, in their order."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self._stay = {one.untyped_storage()._cdata for one in (*model.parameters(), *model.buffers())}
        self._free: dict[tuple[int, torch.dtype], list[Tensor]] = {}
        self._leaving: deque[tuple[torch.cuda.Event, Tensor]] = deque()
        self._flying = 0
        self.bytes = 0

    @contextmanager
    def around(self, before: list[_Held]) -> Iterator[list[_Held]]:
        """Send what is saved inside; yields what was sent, and `before` is what an earlier block sent."""
        sent: list[_Held] = []
        coming = [False]

        def pack(value: Tensor) -> Tensor | _Held:
            if not self._goes(value):
                return value
            held = self._send(value)
            sent.append(held)
            return held

        def unpack(value: Tensor | _Held) -> Tensor:
            if isinstance(value, Tensor):
                return value
            self._let_go(0)
            tensor = value.take()
            if not coming[0]:
                coming[0] = True
                for one in before:
                    one.fetch()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield sent

    def give_back(self, host: Tensor) -> None:
        """Take memory that nobody reads any more, for the next tensor of its size."""
        self._free.setdefault((host.numel(), host.dtype), []).append(host)

    def _goes(self, value: Tensor) -> bool:
        return (
            type(value) is Tensor
            and value.is_cuda
            and value.nbytes >= SMALLEST
            and value.untyped_storage()._cdata not in self._stay
            and _is_dense(value)
        )

    def _send(self, value: Tensor) -> _Held:
        value = value.detach()
        free = self._free.get((value.numel(), value.dtype))
        # of the same stream: whatever read this memory before is done when the copy begins
        host = free.pop() if free else torch.empty(value.numel(), dtype=value.dtype, pin_memory=True)
        main = torch.cuda.current_stream(value.device)
        self.stream.wait_stream(main)
        with torch.cuda.stream(self.stream):
            host.copy_(value.as_strided((value.numel(),), (1,)), non_blocking=True)
            left = torch.cuda.Event()
            left.record(self.stream)
        self._leaving.append((left, value))
        self._flying += value.nbytes
        self.bytes += value.nbytes
        self._let_go(FLYING)
        return _Held(self, host, value)

    def _let_go(self, most: int) -> None:
        """Have computing wait until at most so many bytes are on their way out; what has left may be overwritten."""
        while self._flying > most:
            left, value = self._leaving.popleft()
            torch.cuda.current_stream(value.device).wait_event(left)
            self._flying -= value.nbytes


def _is_dense(value: Any) -> bool:
    """Return whether a tensor fills its stretch of memory, whatever the order of its dimensions."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return bool(span == value.numel())
