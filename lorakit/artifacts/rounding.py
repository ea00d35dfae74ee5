"""What rounding merged weights costs, summed up layer by layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# elements that are compared at once: copies of a large embedding would outweigh the rest of a merge
CHUNK = 1 << 20


class Rounding:
    """The largest error of a weight, and the Frobenius norm of all errors relative to that of the exact weights."""

    def __init__(self) -> None:
        self.modules = 0
        self.largest = 0.0
        self._error = self._norm = 0.0

    def add(self, exact: Tensor, rounded: Tensor) -> None:
        """Count one weight: `exact` in float32, `rounded` of the same shape."""
        self.modules += 1
        for one, other in zip(exact.reshape(-1).split(CHUNK), rounded.reshape(-1).split(CHUNK), strict=True):
            difference = one - other.float()
            self.largest = max(self.largest, float(torch.linalg.vector_norm(difference, math.inf)))
            self._error += float(torch.dot(difference, difference))
            self._norm += float(torch.dot(one, one))

    @property
    def relative(self) -> float:
        """The Frobenius norm of the errors over that of the weights."""
        return float((self._error / self._norm) ** 0.5) if self._norm else 0.0
