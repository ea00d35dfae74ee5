"""What rounding merged weights costs, summed up layer by layer."""

from __future__ import annotations

from torch import Tensor

# elements that are compared at once: float64 copies of a large embedding would outweigh the rest of a merge
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
            difference = (one - other.float()).abs()
            self.largest = max(self.largest, float(difference.max()))
            self._error += float(difference.double().square().sum())
            self._norm += float(one.double().square().sum())

    @property
    def relative(self) -> float:
        """The Frobenius norm of the errors over that of the weights."""
        return float((self._error / self._norm) ** 0.5) if self._norm else 0.0
