"""What blocks keep for their backward pass, in pinned CPU memory meanwhile: copies go beside the computing.

Each block's tensors leave on a stream of their own while later blocks compute, and those of the block before come back
while one is in its backward pass. (Rhu et al. 2016, vDNN, arXiv:1602.08124.)
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

logger = logging.getLogger("lorakit")
# of no use to send less, in bytes
SMALLEST = 1 << 18
# of a tensor's bytes: more of what lies around it would go with it
MOST_AROUND = 8
# bytes that may be on their way out before computing waits for them
FLYING = 256 << 20


class Held:
    """A stretch of a device's memory in CPU memory; `back` is its copy on the device once that is on its way."""

    def __init__(self, away: Away, host: Tensor, device: torch.device) -> None:
        self._away, self._host, self._device = away, host, device
        self._back: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    def fetch(self) -> None:
        """Start its way back."""
        if self._back is not None:
            return
        self._back = torch.empty_like(self._host, device=self._device)
        stream = self._away.stream
        # what lay in this memory before is done with
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            self._back.copy_(self._host, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(stream)

    def there(self) -> Tensor:
        """Return it on the device, in bytes, which computing waits for."""
        self.fetch()
        assert self._back is not None
        if self._arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(self._arrived)
            self._arrived = None
        return self._back

    def __del__(self) -> None:
        self._away.give_back(self._host)


@dataclass(frozen=True, slots=True)
class _View:
    """A saved tensor's place in what was sent."""

    held: Held
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def taken(self) -> Tensor:
        return self.held.there().view(self.dtype).as_strided(self.size, self.stride, self.offset)


class Away:
    """Sends what blocks of one model keep; `around` is entered for each block's forward pass, in their order."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self._stay = {one.untyped_storage()._cdata for one in (*model.parameters(), *model.buffers())}
        self._free: dict[int, list[Tensor]] = {}
        self._leaving: deque[tuple[torch.cuda.Event, Tensor]] = deque()
        self._flying = 0
        self._pinned = True
        self.bytes = 0

    @contextmanager
    def around(self, before: Sequence[Held]) -> Iterator[list[Held]]:
        """Send what is saved inside; yields what was sent, and `before` is what an earlier block sent."""
        sent: list[Held] = []
        # of this block alone: its outputs are what the next one keeps
        by_storage: dict[int, Held] = {}

        def pack(value: Tensor) -> Tensor | _View:
            storage = value.untyped_storage()
            if not self._goes(value, storage):
                return value
            held = by_storage.get(storage._cdata)
            if held is None:
                held = by_storage[storage._cdata] = self._send(value)
                sent.append(held)
            return _View(held, value.dtype, value.shape, value.stride(), int(value.storage_offset()))

        def unpack(value: Tensor | _View) -> Tensor:
            if isinstance(value, Tensor):
                return value
            self._let_go(0)
            tensor = value.taken()
            for one in before:
                one.fetch()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield sent
        by_storage.clear()

    def give_back(self, host: Tensor) -> None:
        """Take memory that nobody reads any more, for the next tensor of its size."""
        self._free.setdefault(host.numel(), []).append(host)

    def _goes(self, value: Tensor, storage: torch.UntypedStorage) -> bool:
        return (
            type(value) is Tensor
            and value.is_cuda
            and storage._cdata not in self._stay
            and SMALLEST <= storage.nbytes() <= MOST_AROUND * value.nbytes
        )

    def _send(self, value: Tensor) -> Held:
        storage = value.untyped_storage()
        whole = torch.empty(0, dtype=torch.uint8, device=value.device).set_(storage)
        free = self._free.get(storage.nbytes())
        # of the same stream: whatever read this memory before is done when the copy begins
        host = free.pop() if free else self._host(storage.nbytes())
        self.stream.wait_stream(torch.cuda.current_stream(value.device))
        with torch.cuda.stream(self.stream):
            host.copy_(whole, non_blocking=True)
            left = torch.cuda.Event()
            left.record(self.stream)
        self._leaving.append((left, whole))
        self._flying += whole.nbytes
        self.bytes += whole.nbytes
        self._let_go(FLYING)
        return Held(self, host, value.device)

    def _host(self, size: int) -> Tensor:
        if self._pinned:
            try:
                return torch.empty(size, dtype=torch.uint8, pin_memory=True)
            except RuntimeError as error:
                self._pinned = False
                logger.warning("no pinned memory (%s); what blocks keep goes to plain memory, and copies wait", error)
        return torch.empty(size, dtype=torch.uint8)

    def _let_go(self, most: int) -> None:
        """Have computing wait until at most so many bytes are on their way out; what has left may be overwritten."""
        while self._flying > most:
            left, value = self._leaving.popleft()
            torch.cuda.current_stream(value.device).wait_event(left)
            self._flying -= value.nbytes
