"""What a cache of transformers holds between two tokens: tensors, and numbers that Python counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

# where a leaf lies: an object, and an attribute of it or a place in it
Place = tuple[Any, Any]
Number = bool | int | float | None


def leaves(cache: Any) -> Iterator[tuple[Place, Any]]:
    """Yield every tensor and number of a cache's layers, and of the caches that it is made of."""
    if not hasattr(cache, "layers"):
        for part in vars(cache).values():
            if hasattr(part, "layers"):
                yield from leaves(part)
    for layer in getattr(cache, "layers", ()):
        for name, value in list(vars(layer).items()):
            yield from _within(layer, name, value)


def _within(owner: Any, name: Any, value: Any) -> Iterator[tuple[Place, Any]]:
    if isinstance(value, Tensor | bool | int | float) or value is None:
        yield (owner, name), value
    elif isinstance(value, dict):
        for key, inner in list(value.items()):
            yield from _within(value, key, inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _within(value, index, inner)


def put(place: Place, value: Any) -> None:
    """Set what lies at a place."""
    owner, name = place
    if isinstance(owner, dict | list):
        owner[name] = value
    else:
        setattr(owner, name, value)


@dataclass(frozen=True, slots=True)
class CacheState:
    """What a cache held once: tensors with copies of their values, and numbers."""

    tensors: list[tuple[Place, Tensor, Tensor]]
    numbers: list[tuple[Place, Number]]

    @classmethod
    def of(cls, cache: Any) -> Self:
        tensors: list[tuple[Place, Tensor, Tensor]] = []
        numbers: list[tuple[Place, Number]] = []
        for place, value in leaves(cache):
            if isinstance(value, Tensor):
                tensors.append((place, value, value.clone()))
            else:
                numbers.append((place, value))
        return cls(tensors, numbers)

    def restore(self) -> None:
        """Give the cache what it held, in the tensors that held it."""
        for place, tensor, values in self.tensors:
            tensor.copy_(values)
            put(place, tensor)
        for place, number in self.numbers:
            put(place, number)

    def moved(self, cache: Any) -> bool:
        """Return whether the cache holds other tensors now."""
        now = [value for _, value in leaves(cache) if isinstance(value, Tensor)]
        return len(now) != len(self.tensors) or any(
            one is not tensor for one, (_, tensor, _) in zip(now, self.tensors, strict=True)
        )

    def counted(self, cache: Any) -> list[tuple[Place, int]]:
        """Return the numbers that grew since, and by how much. Raises: ValueError where one changed otherwise."""
        now = [(place, value) for place, value in leaves(cache) if not isinstance(value, Tensor)]
        if len(now) != len(self.numbers):
            raise ValueError("its cache holds other things after each token")
        grew: list[tuple[Place, int]] = []
        for (place, value), (_, before) in zip(now, self.numbers, strict=True):
            if value == before:
                continue
            if type(value) is not int or type(before) is not int:
                raise ValueError(f"its cache changes {place[1]} by {type(place[0]).__name__} after each token")
            grew.append((place, value - before))
        return grew


def form(cache: Any) -> tuple[Any, ...]:
    """Return what decides how a cache computes the next token: where its tensors lie, and whether a window is full."""
    windows = tuple(
        layer.cumulative_length_int >= layer.max_cache_len
        for part in (cache, *vars(cache).values())
        for layer in getattr(part, "layers", ())
        if hasattr(layer, "cumulative_length_int")
    )
    return (*(value.data_ptr() for _, value in leaves(cache) if isinstance(value, Tensor)), windows)


def is_static(cache: Any) -> bool:
    """Return whether transformers made a cache whose tensors stay where they are, and filled it with a prompt."""
    from transformers import DynamicCache

    if not getattr(cache, "is_compileable", False):
        return False
    parts = [part for part in (cache, *vars(cache).values()) if hasattr(part, "layers")]
    return bool(parts) and not any(isinstance(part, DynamicCache) for part in parts)


def length(cache: Any) -> int:
    """Return how many tokens the longest layer holds."""
    sizes = [int(getattr(layer, "max_cache_len", 0)) for layer in getattr(cache, "layers", ())]
    return max(sizes, default=0)
