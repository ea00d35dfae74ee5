"""What memory that ran out looks like, and giving back what is held for nothing."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from lorakit.errors import TrainingError

T = TypeVar("T")
# what others than torch's own allocator say
SAYINGS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_shortage(error: BaseException) -> bool:
    """Return whether an error says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error) for saying in SAYINGS)


def let_go(error: BaseException) -> None:
    """Let go of what the frames that an error came through hold: the tensors of the attempt that failed."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        following.__traceback__ = None
        following = following.__cause__ or following.__context__


def free_caches(*, thoroughly: bool) -> int:
    """Give back to the device what its allocator keeps for later; return the bytes.

    Cycles of objects can hold tensors: of those, new ones are looked for, or thoroughly all, which takes its time.
    """
    gc.collect(2 if thoroughly else 1)
    if not torch.cuda.is_initialized():
        return 0
    before = torch.cuda.memory_reserved()
    torch.cuda.empty_cache()
    return before - torch.cuda.memory_reserved()


def retried(work: Callable[[], T]) -> T:
    """Return what work gives that takes next to no memory and changes nothing, tried again where there is none."""
    for thoroughly in (False, True):
        try:
            return work()
        except Exception as error:
            if not is_shortage(error):
                raise
            let_go(error)
        free_caches(thoroughly=thoroughly)
    return work()


@contextmanager
def in_words() -> Iterator[None]:
    """Turn memory that ran out for good inside the block into words. Raises: TrainingError."""
    try:
        yield
    except Exception as error:
        if not is_shortage(error):
            raise
        # what an allocator says goes on for lines about its settings
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError("\n".join([first, *getattr(error, "__notes__", ())])) from error
