"""What a step on some parameters changes, kept until it is done: a step that fails half-way is as if never begun."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lorakit.paging.pages import Page, Piece


class Undo:
    """Copies of parameters, gradients, pages and other state, and what the state's dicts and lists hold."""

    def __init__(self, pieces: Sequence[Piece], pages: Sequence[Page], state: dict[Any, Any]) -> None:
        """Take the copies. Raises: torch.OutOfMemoryError; nothing has changed then."""
        self._state = state
        self._absent = [piece.parameter for piece in pieces if piece.parameter not in state]
        self._holders: list[tuple[Any, Any]] = []
        self._gradients = [(piece.parameter, piece.parameter.grad) for piece in pieces]
        tensors: list[Tensor] = []
        for piece in pieces:
            tensors.append(piece.parameter.detach())
            if piece.parameter.grad is not None and not piece.parameter.grad.is_sparse:
                tensors.append(piece.parameter.grad)
            if piece.parameter in state:
                paged = {id(slot.tensor) for slot in piece.slots.values()}
                tensors += (one for one in self._held(state[piece.parameter]) if id(one) not in paged)
        tensors += (page.near.memory for page in pages if page.near is not None)
        self._kept = list(_flat(tensors))

    @torch.no_grad()
    def restore(self) -> bool:
        """Put everything back. Returns whether all is as it was: it is."""
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        for parameter in self._absent:
            self._state.pop(parameter, None)
        for holder, content in self._holders:
            if isinstance(holder, dict):
                holder.clear()
                holder.update(content)
            else:
                holder[:] = content
        for tensors, copies in self._kept:
            for tensor, kept in zip(tensors, copies.split([one.numel() for one in tensors]), strict=True):
                tensor.copy_(kept.view(tensor.shape))
        return True

    def _held(self, holder: Any) -> Iterator[Tensor]:
        """Yield the tensors in a state, and note what its dicts and lists hold."""
        if isinstance(holder, dict | list):
            self._holders.append((holder, copy_of(holder)))
        for value in holder.values() if isinstance(holder, dict) else holder:
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, dict | list | tuple):
                yield from self._held(value)


class Untouched:
    """In place of copies, where a call has no reason to fail half-way: whether it changed anything."""

    def __init__(self, pieces: Sequence[Piece], pages: Sequence[Page], state: dict[Any, Any]) -> None:
        self._watched: list[Tensor] = [piece.parameter for piece in pieces]
        self._watched += (page.near.memory for page in pages if page.near is not None)
        self._versions = self._now()

    def restore(self) -> bool:
        """Return whether all is as it was."""
        return self._versions == self._now()

    def _now(self) -> list[int]:
        return [tensor._version for tensor in self._watched]


def copy_of(holder: Any) -> Any:
    """Return a dict or a list that holds the same."""
    return dict(holder) if isinstance(holder, dict) else list(holder)


@torch.no_grad()
def _flat(tensors: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Yield tensors of one device and dtype together, with their values one behind the other."""
    groups: dict[Any, list[Tensor]] = {}
    for tensor in {id(tensor): tensor for tensor in tensors}.values():
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    for alike in groups.values():
        yield alike, torch.cat([tensor.reshape(-1) for tensor in alike])
