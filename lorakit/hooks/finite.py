"""What quantizers refuse: a weight with NaN or infinity in it, which would spoil its whole block in silence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def require_finite(weight: Tensor, what: str = "the weight") -> None:
    """Return if every value is finite; one pass, no copy. Raises: ValueError saying that `what` is not finite."""
    import torch

    if weight.numel() and not all(math.isfinite(end) for end in torch.aminmax(weight)):
        lost = int((~weight.isfinite()).sum())
        raise ValueError(f"{what} is not finite: {lost:,} of {weight.numel():,} values are NaN or infinite")
