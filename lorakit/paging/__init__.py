"""Optimizer state in pages, near an accelerator or far from it, for any optimizer."""

from lorakit.paging.optimizer import Paged
from lorakit.paging.pool import Traffic

__all__ = ["Paged", "Traffic"]
