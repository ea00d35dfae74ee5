"""What backward needs kept in CPU memory: saved tensors go out as they are saved, and come back as they are read."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

logger = logging.getLogger("lorakit")
# of no use to send less, in bytes
SMALLEST = 1 << 16
# elements at which allocators begin a tensor; a kernel may be chosen by where one begins
ALIGNED = 64


class _Sent:
    """One stretch of memory on the host, for every saved tensor that lies in it."""

    def __init__(self, flat: Tensor, owner: StorageWeakRef) -> None:
        self.flat, self.owner = flat, owner


@dataclass(frozen=True, slots=True)
class _View:
    """A saved tensor's place in what was sent, and the device that it comes back to."""

    sent: _Sent
    size: torch.Size
    stride: tuple[int, ...]
    first: int
    device: torch.device


@dataclass(slots=True)
class Sending:
    """What was sent so far: bytes, each stretch of memory once. `pinned` is whether the system let memory be pinned."""

    bytes: int = 0
    pinned: bool = True
    held: WeakValueDictionary[Any, _Sent] = field(default_factory=WeakValueDictionary)

    @contextmanager
    def around(self, model: nn.Module) -> Iterator[Sending]:
        """Send what is saved inside the block, but for what stays anyway: the model's parameters and buffers."""
        stay = {one.untyped_storage()._cdata for one in (*model.parameters(), *model.buffers()) if _is_plain(one)}

        def pack(value: Tensor) -> Tensor | _View:
            if not _is_plain(value) or value.untyped_storage()._cdata in stay or value.nbytes < SMALLEST:
                return value
            return self._send(value.detach())

        with torch.autograd.graph.saved_tensors_hooks(pack, _fetched):
            yield self

    def _send(self, value: Tensor) -> _View:
        span = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
        first = int(value.storage_offset() % ALIGNED)
        storage = value.untyped_storage()
        key = (storage._cdata, value.storage_offset(), span, value.dtype, value._version)
        sent = self.held.get(key)
        # where a storage is gone another may have come to stand in its place
        if sent is None or sent.owner.expired():
            flat = self._host(first + span, value)
            flat[first:].copy_(value.as_strided((span,), (1,)), non_blocking=True)
            self.bytes += span * value.element_size()
            sent = self.held[key] = _Sent(flat, StorageWeakRef(storage))
        return _View(sent, value.shape, value.stride(), first, value.device)

    def _host(self, count: int, like: Tensor) -> Tensor:
        if like.is_cuda and self.pinned:
            try:
                return torch.empty(count, dtype=like.dtype, pin_memory=True)
            except RuntimeError as error:
                self.pinned = False
                _say_plain(str(error))
        return torch.empty(count, dtype=like.dtype)


@functools.cache
def _say_plain(error: str) -> None:
    """Say it the first time: where memory is short, a step may do this each time."""
    logger.warning("no pinned memory (%s); saved tensors go to plain memory, and copies wait", error)


def _fetched(value: Tensor | _View) -> Tensor:
    if isinstance(value, Tensor):
        return value
    flat = value.sent.flat.to(value.device, non_blocking=True)
    return flat.as_strided(value.size, value.stride, value.first)


def _is_plain(value: Tensor) -> bool:
    return type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided and not value.is_conj()
