"""How pages move between two sides: at once, or on streams of their own beside what the device computes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from lorakit.paging.sides import Arena, DeviceMemory, MappedFile, PinnedMemory, Side

# what is known of a copy that may not be done yet; None for one that is
Mark = Any


class Link(Protocol):
    """The near side, where an optimizer steps, the far side, and copies between the two.

    A copy begins behind all that the device was asked until now, and behind the copies of the marks in `after`.
    """

    near: Side
    far: Side

    def fetch(self, far: Tensor, near: Tensor, after: Iterable[Mark]) -> Mark:
        """Start a copy in."""

    def send(self, near: Tensor, far: Tensor, after: Iterable[Mark]) -> Mark:
        """Start a copy out."""

    def join(self, mark: Mark) -> None:
        """Let the device wait for a copy before what it is asked next; the program does not wait."""

    def settle(self, mark: Mark) -> None:
        """Wait for a copy."""


class Direct:
    """Copies that are done when they return."""

    def __init__(self, near: Side, far: Side) -> None:
        self.near, self.far = near, far

    def fetch(self, far: Tensor, near: Tensor, after: Iterable[Mark]) -> Mark:
        """Copy in."""
        near.copy_(far)

    def send(self, near: Tensor, far: Tensor, after: Iterable[Mark]) -> Mark:
        """Copy out."""
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
        self._device = device
        self._inward, self._outward = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def fetch(self, far: Tensor, near: Tensor, after: Iterable[Mark]) -> Mark:
        """Start a copy in."""
        return self._copy(self._inward, far, near, after)

    def send(self, near: Tensor, far: Tensor, after: Iterable[Mark]) -> Mark:
        """Start a copy out."""
        return self._copy(self._outward, near, far, after)

    def join(self, mark: Mark) -> None:
        """Let the device's current stream wait for a copy."""
        if mark is not None:
            torch.cuda.current_stream(self._device).wait_event(mark)

    def settle(self, mark: Mark) -> None:
        """Wait for a copy."""
        if mark is not None:
            mark.synchronize()

    def _copy(self, stream: torch.cuda.Stream, source: Tensor, target: Tensor, after: Iterable[Mark]) -> Mark:
        stream.wait_stream(torch.cuda.current_stream(self._device))
        for mark in after:
            if mark is not None:
                stream.wait_event(mark)
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
        return stream.record_event()


def link_for(device: torch.device) -> Link:
    """Return the link between a device's memory and what is behind it."""
    if device.type == "cuda":
        return Streamed(device)
    if device.type == "cpu":
        return Direct(Arena(), MappedFile())
    return Direct(DeviceMemory(device), Arena())
