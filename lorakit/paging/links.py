"""How pages move between two sides: at once, or on streams of their own beside what the device computes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lorakit.paging.sides import Arena, DeviceMemory, MappedFile, PinnedMemory, Side
from lorakit.paging.stalls import Waits

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

    @property
    def stalled(self) -> float:
        """The seconds that the device waited for copies so far, as far as that is known."""

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
        self.stalled = 0.0

    def fetch(self, copies: Copies, after: Iterable[Mark]) -> Mark:
        """Copy in."""
        self._copy(copies)

    def send(self, copies: Copies, after: Iterable[Mark]) -> Mark:
        """Copy out."""
        self._copy(copies)

    def join(self, mark: Mark) -> None:
        """Do nothing: the copy is done."""

    def settle(self, mark: Mark) -> None:
        """Do nothing: the copy is done."""

    def _copy(self, copies: Copies) -> None:
        began = time.perf_counter()
        for source, target in copies:
            target.copy_(source)
        self.stalled += time.perf_counter() - began


class Streamed:
    """Copies on two streams of a CUDA device, one for each way, marked by events."""

    def __init__(self, device: torch.device) -> None:
        self.near: Side = DeviceMemory(device)
        self.far: Side = PinnedMemory()
        # torch finds a stream by an index sooner than by a device
        self._index = torch.cuda.current_device() if device.index is None else device.index
        self._inward, self._outward = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._waits = Waits()

    @property
    def stalled(self) -> float:
        """The seconds that the device's current stream waited for copies, of those waits that are over."""
        return self._waits.seconds

    def fetch(self, copies: Copies, after: Iterable[Mark]) -> Mark:
        """Start copies in."""
        return self._copy(self._inward, copies, after)

    def send(self, copies: Copies, after: Iterable[Mark]) -> Mark:
        """Start copies out."""
        return self._copy(self._outward, copies, after)

    def join(self, mark: Mark) -> None:
        """Let the device's current stream wait for copies."""
        if mark is not None:
            self._waits.wait(torch.cuda.current_stream(self._index), mark)

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
