"""Where pages lie: an accelerator's memory, pinned memory, an arena in plain memory, a memory-mapped file."""

from __future__ import annotations

import logging
import mmap
import os
import tempfile
from typing import IO, Protocol

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# bytes
SLAB = 32 << 20


class Side(Protocol):
    """One side of a link; every page is asked of it by itself and goes back when nothing holds it any more."""

    def allocate(self, size: int) -> Tensor:
        """Return `size` bytes. Raises: torch.OutOfMemoryError where memory is short, OSError where a disk is full."""


class DeviceMemory:
    """An accelerator's memory, from torch's own allocator: never managed memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def allocate(self, size: int) -> Tensor:
        """Return `size` bytes on the device."""
        return torch.empty(size, dtype=torch.uint8, device=self._device)


class Arena:
    """Plain memory."""

    def allocate(self, size: int) -> Tensor:
        """Return `size` bytes."""
        try:
            return torch.empty(size, dtype=torch.uint8)
        except RuntimeError as error:
            # torch has no class of its own for memory that a CPU lacks
            raise torch.OutOfMemoryError(str(error)) from error


class PinnedMemory:
    """Memory that an accelerator copies from and to by itself; plain memory once the system gives no more of it.

    torch rounds what it pins up to a power of two, so it is asked for slabs, and pages are parts of those.
    """

    def __init__(self) -> None:
        self._slab, self._used = torch.empty(0, dtype=torch.uint8), 0
        self._plain: Arena | None = None

    def allocate(self, size: int) -> Tensor:
        """Return `size` bytes, pinned if the system lets them be."""
        if self._plain is None and self._used + size > self._slab.numel():
            try:
                self._slab, self._used = torch.empty(max(SLAB, size), dtype=torch.uint8, pin_memory=True), 0
            except RuntimeError as error:
                logger.warning("paged: no pinned memory (%s); pages go to plain memory, and copies wait", error)
                self._plain = Arena()
        if self._plain is not None:
            return self._plain.allocate(size)
        self._used += size
        return self._slab[self._used - size : self._used]


class MappedFile:
    """A file without a name, as long as what was asked of it: nothing is left of it, however the process ends."""

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._length = 0

    def allocate(self, size: int) -> Tensor:
        """Return `size` bytes of the file. Raises: OSError while nothing has changed, where the disk is full."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="lorakit-pages-", dir=self._folder)  # noqa: SIM115
        room = -(-size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        # a hole would be filled when it is written to, and a full disk end the process then
        _fill(self._file, self._length, room)
        mapped = mmap.mmap(self._file.fileno(), size, offset=self._length)
        self._length += room
        return torch.frombuffer(mapped, dtype=torch.uint8)


def _fill(file: IO[bytes], offset: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), offset, size)
    else:
        file.seek(offset)
        file.write(bytes(size))
        file.flush()
