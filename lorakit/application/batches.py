"""Batches on the way to a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def moved(value: Any, device: torch.device) -> Any:
    """Return a tensor on a device, and anything else as it is."""
    return value.to(device) if isinstance(value, Tensor) else value
