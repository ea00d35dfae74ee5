"""Batches as a step takes them: their rows, what they count for in the loss, and their halves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lorakit.data.tokens import IGNORED

# arguments of transformers' models that are of a whole batch, whatever their size
WHOLE = frozenset({"logits_to_keep", "num_items_in_batch"})
# how rows lie one behind the other in one: what they are is not to be seen in their shapes
FLAT = frozenset({"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"})


def parts_of(batch: Any) -> dict[Any, Any]:
    """Return what a batch is made of, by name or by place."""
    return dict(batch) if isinstance(batch, Mapping) else dict(enumerate(batch))


def rows_of(batch: Any) -> int:
    """Return how many rows a batch has: a mapping of a model's arguments, or an (inputs, targets) pair.

    It is 0 where that is not to be seen: its parts are no tensors of as many rows each, or rows lie flat.
    """
    parts = parts_of(batch)
    by_row = [value for name, value in parts.items() if not _is_whole(name, value)]
    if FLAT & parts.keys() or not all(isinstance(value, Tensor) for value in by_row):
        return 0
    counts = {len(value) for value in by_row}
    return counts.pop() if len(counts) == 1 else 0


def _is_whole(name: Any, value: Any) -> bool:
    """Return whether a part of a batch is of all of its rows alike."""
    return (
        name in WHOLE
        or value is None
        or isinstance(value, bool | int | float | str)
        or (isinstance(value, Tensor) and not value.dim())
    )


def weight_of(batch: Any) -> int:
    """Return what a batch counts for beside others where its rows alone tell: their number, and 1 if they do not."""
    first = next((len(value) for value in parts_of(batch).values() if isinstance(value, Tensor) and value.dim()), 1)
    return rows_of(batch) or first or 1


def elements_of(batch: Any) -> int:
    """Return the size of a batch in elements of its tensors: of two, the one that takes more memory has more."""
    return sum(value.numel() for value in parts_of(batch).values() if isinstance(value, Tensor))


def halves(batch: Any) -> tuple[Any, Any]:
    """Return a batch of two rows and more as two, first rows first."""
    middle = rows_of(batch) // 2
    return _cut(batch, slice(None, middle)), _cut(batch, slice(middle, None))


def _cut(batch: Any, rows: slice) -> Any:
    def part(name: Any, value: Any) -> Any:
        return value if _is_whole(name, value) else value[rows]

    if isinstance(batch, Mapping):
        return {name: part(name, value) for name, value in batch.items()}
    return tuple(part(None, value) for value in batch)


def learned(labels: Tensor, *, shifted: bool) -> int:
    """Return how many labels of (rows, tokens) are learned; where they are shifted the first of a row never is."""
    counted = labels[..., 1:] if shifted else labels
    return int((counted != IGNORED).sum())
