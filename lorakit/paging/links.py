"""How pages move between two sides: at once, or on streams of their own beside what the device computes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lorakit.paging.sides import Arena, DeviceMemory, MappedFile, PinnedMemory, Side

# what is known of a copy that may not be done yet; None for one that is
Mark = Any


# what is copied, and where to
Copies = Sequence[tuple[Tensor, Tensor]]


class Link(Protocol):
    """The near side, where an optimizer steps, the far side, and copies between the two.

    Copies begin behind all that the device was asked until now, and behind those of the marks in `after`.
    """

    near: Side
    far: Side

    def fetch(self, copies: Copies, after: Iterable[Mark]) -> Mark:
        """Start copies in, one mark for all."""

    def send(self, copies: Copies, after: Iterable[Mark]) -> Mark:
        """Start copies out, one mark for all."""

    def join(self, mark: Mark) -> None:
        """Let the device wait for copies before what it is asked next; the program does not wait."""

    def settle(self, mark: Mark) -> None:
        """Wait for copies."""


class Direct:
    """Copies that are done when they return."""

    def __init__(self, near: Side, far: Side) -> None:
        self.near, self.far = near, far

    def fetch(self, copies: Copies, after: Iterable[Mark]) -> Mark:
        """Copy in."""
        for far, near in copies:
            near.copy_(far)

    def send(self, copies: Copies, after: Iterable[Mark]) -> Mark:
        """Copy out."""
        for near, far in copies:
            far.copy_(near)

    def join(self, mark: Mark) -> None:
        """Do nothing: the copy is done."""

    def settle(self, mark: Mark) -> None:
        """Do nothing: the copy is done."""


class Streamed:
    """Copies on two streams of a CUDA device, one for each way, marked by events."""

    def __init__(self, device: torch.device) -> None:
        self.near: Side = DeviceMemory(device)
        self.far: Side = PinnedMemory()
        # torch finds a stream by an index sooner than by a device
        self._index = torch.cuda.current_device() if device.index is None else device.index
        self._inward, self._outward = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def fetch(self, copies: Copies, after: Iterable[Mark]) -> Mark:
        """Start copies in."""
        return self._copy(self._inward, copies, after)

    def send(self, copies: Copies, after: Iterable[Mark]) -> Mark:
        """Start copies out."""
        return self._copy(self._outward, copies, after)

    def join(self, mark: Mark) -> None:
        """Let the device's current stream wait for copies."""
        if mark is not None:
            torch.cuda.current_stream(self._index).wait_event(mark)

    def settle(self, mark: Mark) -> None:
        """Wait for copies."""
        if mark is not None:
            mark.synchronize()

    def _copy(self, stream: torch.cuda.Stream, copies: Copies, after: Iterable[Mark]) -> Mark:
        stream.wait_stream(torch.cuda.current_stream(self._index))
        for mark in after:
            if mark is not None:
                stream.wait_event(mark)
        with torch.cuda.stream(stream):
            for source, target in copies:
                target.copy_(source, non_blocking=True)
        return stream.record_event()


def link_for(device: torch.device) -> Link:
    """Return the link between a device's memory and what is behind it."""
    if device.type == "cuda":
        return Streamed(device)
    if device.type == "cpu":
        return Direct(Arena(), MappedFile())
    return Direct(DeviceMemory(device), Arena())
