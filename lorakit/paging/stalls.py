"""How long a CUDA stream waits for what happens on others, measured by events around its waits."""

from __future__ import annotations

from collections import deque

import torch


class Waits:
    """Lets streams wait for events, and adds up for how long; the program waits for nothing."""

    def __init__(self) -> None:
        self._over = 0.0
        # events before and behind waits that may not be over, the oldest first
        self._open: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def wait(self, stream: torch.cuda.Stream, event: torch.cuda.Event) -> None:
        """Let a stream wait for an event."""
        # of what is recorded to be run again later no time can be told
        if torch.cuda.is_current_stream_capturing():
            stream.wait_event(event)
            return
        before, behind = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record(stream)
        stream.wait_event(event)
        behind.record(stream)
        self._open.append((before, behind))
        self._count()

    @property
    def seconds(self) -> float:
        """The seconds of all waits that are over."""
        self._count()
        return self._over

    def _count(self) -> None:
        while self._open and self._open[0][1].query():
            before, behind = self._open.popleft()
            self._over += before.elapsed_time(behind) / 1000
