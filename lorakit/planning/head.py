"""How much of an output head is computed at once: logits of a large vocabulary are most of what a short model holds."""

from __future__ import annotations

# of logits at once: 640 MiB, with their copy in float32 and its gradient
LOGITS = 1 << 26
# rows that a product of matrices takes in one go
TILE = 128


def rows_at_once(vocabulary: int) -> int:
    """Return for how many rows logits are computed at once in a training step; they come by as many at a time."""
    return max(LOGITS // max(vocabulary, 1) // TILE, 1) * TILE


def chunk_of(rows: int, most: int) -> int:
    """Return how many of these rows a chunk has where at most so many are computed at once: all of one size."""
    return -(-rows // -(-rows // most))
