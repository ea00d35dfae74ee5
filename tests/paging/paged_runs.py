"""Runs of optimizers, paged and not, on the same gradients, and a link whose copies are late."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lorakit.paging import Paged
from lorakit.paging.links import Copies
from lorakit.paging.sides import Arena, Side

Maker = Callable[[Any], torch.optim.Optimizer]

PAGE = 4096
# of few values and many; the state of one fills most of a page, another's takes several
SMALL = ((480,), (20, 20), (31, 13), (7,), (24, 19)) * 4
SHAPES = ((16, 20), (5,), (30, 10), (1,), (64, 80), (20, 16), (2, 3, 4), (31, 11), (12, 12))


def parameters(dtype: torch.dtype = torch.float32, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[nn.Parameter]:
    """Return parameters of several shapes."""
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def groups(members: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
    """Return two groups with learning rates of their own."""
    return [{"params": list(members[:4])}, {"params": list(members[4:]), "lr": 3e-3}]


def give(members: Sequence[nn.Parameter], number: int, *, all_of_them: bool = False) -> None:
    """Give the gradients of a step, to all of them or, in some steps, not to some."""
    generator = torch.Generator().manual_seed(number)
    for index, parameter in enumerate(members):
        gradient = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        parameter.grad = None if (number + index) % 4 == 1 and not all_of_them else gradient


def run(optimizer: Any, members: Sequence[nn.Parameter], steps: Iterable[int]) -> None:
    """Take steps, with the weights to use looked at after the fifth where they are others."""
    if hasattr(optimizer, "train"):
        optimizer.train()
    for number in steps:
        give(members, number)
        optimizer.step()
        if number == 4 and hasattr(optimizer, "eval"):
            optimizer.eval()
            optimizer.train()


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Return whether tensors hold the same bits."""
    return len(first) == len(second) and all(
        one.dtype == other.dtype and torch.equal(one, other) for one, other in zip(first, second, strict=True)
    )


def flat(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a state dict holds by path, whatever order it came in."""
    found: dict[str, Any] = {}

    def walk(path: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, one in value.items():
                walk(f"{path}.{key}", one)
        elif isinstance(value, list | tuple) and any(isinstance(one, dict | Tensor) for one in value):
            for index, one in enumerate(value):
                walk(f"{path}.{index}", one)
        else:
            found[path] = value

    walk("", dict(state_dict))
    return found


def same_state(first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> bool:
    """Return whether two optimizers have equal state dicts, to the bit."""
    one, other = flat(first.state_dict()), flat(second.state_dict())
    return one.keys() == other.keys() and all(
        same([value], [other[path]]) if isinstance(value, Tensor) else value == other[path]
        for path, value in one.items()
    )


def sizes(made: Maker, dtype: torch.dtype = torch.float32) -> tuple[int, int]:
    """Return the bytes of all pages of an optimizer's state, and of the largest."""
    optimizer = Paged(made(groups(parameters(dtype))), page_size=PAGE)
    return optimizer.near_bytes, optimizer.least_budget


class Late:
    """A link whose copies are done when something waits for them, as an accelerator's may be, and not before.

    Until then there is nothing of sense where they go. `waits` counts how often the program waited.
    """

    def __init__(self, *_: object) -> None:
        self.near: Side = Arena()
        self.far: Side = Arena()
        self.waits, self.stalled = 0, 0.0

    def fetch(self, copies: Copies, after: Iterable[Any]) -> Any:
        return self._start(copies, after)

    def send(self, copies: Copies, after: Iterable[Any]) -> Any:
        return self._start(copies, after)

    def join(self, mark: Any) -> None:
        if mark is not None:
            mark()

    def settle(self, mark: Any) -> None:
        if mark is not None:
            self.waits += 1
            mark()

    def _start(self, copies: Copies, after: Iterable[Any]) -> Any:
        done = False

        def finish() -> None:
            nonlocal done
            if not done:
                done = True
                for mark in before:
                    if mark is not None:
                        mark()
                for source, target in copies:
                    # whoever wrote to the source before this was waited for has spoilt the copy
                    target.copy_(source)

        before = list(after)
        if not before or all(mark is None for mark in before):
            for _, target in copies:
                target.fill_(0xA5)
        return finish


class Short(TorchDispatchMode):
    """Memory that is short at some of the operations that need more of it, counted from the first."""

    def __init__(self, *at: int) -> None:
        super().__init__()
        self.count = 0
        self._at = at

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "aten" and not func._schema.is_mutable and not func.is_view:
            self.count += 1
            if self.count - 1 in self._at:
                raise torch.OutOfMemoryError("no memory, for a test")
        return func(*args, **(kwargs or {}))
