"""What a capture of a CUDA graph needs around it: models that ask the device nothing, and a reason where one does."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lorakit.stepping.shortage import is_shortage

# passes before a capture, for what libraries and compilers prepare on their first calls
PASSES = 3


@contextmanager
def told_so() -> Iterator[None]:
    """Let whoever asks whether this is captured hear that it is: there, models leave out questions to the device."""
    asked = torch.cuda.is_current_stream_capturing
    torch.cuda.is_current_stream_capturing = _always
    try:
        yield
    finally:
        torch.cuda.is_current_stream_capturing = asked


def _always() -> bool:
    return True


@contextmanager
def without_waiting() -> Iterator[None]:
    """Let whatever waits for the device fail: a capture that fails half-way leaves generators that draw no more."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def reason(error: Exception) -> str:
    """Return why something was not captured, and where in the code outside torch."""
    if is_shortage(error):
        return "memory ran out"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/torch/" not in frame.filename]
    where = f", at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    if "synchronizing CUDA operation" in str(error):
        return f"it waits for the device on its way{where}"
    return f"{type(error).__name__}: {error}{where}"
