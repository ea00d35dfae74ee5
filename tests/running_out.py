"""Memory that runs out on purpose: at the allocations that a test names, wherever in a step they fall."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class Allocations(TorchDispatchMode):
    """Counts the operations that give a new tensor, and fails those of these numbers, from 0, before they are done.

    Those that are not `among` what a test looks at are not counted.
    """

    def __init__(self, failing: Iterable[int] = (), among: Callable[[Any], bool] = lambda func: True) -> None:
        super().__init__()
        self._among = among
        self.count = 0
        self.failed: list[str] = []
        self._failing = frozenset(failing)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _allocates(func) and self._among(func):
            self.count += 1
            if self.count - 1 in self._failing:
                self.failed.append(str(func))
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB. (on purpose)")
        return func(*args, **(kwargs or {}))


@functools.cache
def _allocates(func: Any) -> bool:
    """Return whether an operation gives a tensor of its own: no view, nothing written in place."""
    returns = func._schema.returns
    return bool(returns) and any("Tensor" in str(one.type) and one.alias_info is None for one in returns)


class Full(TorchDispatchMode):
    """A device with room for so many bytes of saved tensors: the operation after one too many is refused."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.held = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.held > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. (room for saved tensors)")
        return func(*args, **(kwargs or {}))

    @contextmanager
    def around(self, model: nn.Module) -> Iterator[None]:
        stay = {one.untyped_storage().data_ptr() for one in model.parameters()}

        def pack(value: Tensor) -> Any:
            return value if value.untyped_storage().data_ptr() in stay else _Held(self, value.detach())

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: getattr(held, "value", held)), self:
            yield


class _Held:
    def __init__(self, device: Full, value: Tensor) -> None:
        self.device, self.value = device, value
        device.held += value.nbytes
        device.peak = max(device.peak, device.held)

    def __del__(self) -> None:
        self.device.held -= self.value.nbytes
