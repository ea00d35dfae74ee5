"""The quantities of `require`: figures that only a plan knows, each with what it measures."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# A share (`%`), bytes (`B`) or a plain number (empty)
QUANTITIES: Mapping[str, str] = MappingProxyType({"trainable": "%", "peak_memory": "B"})

MEANINGS: Mapping[str, str] = {
    "trainable": "the parameters that train, as a share of all",
    "peak_memory": "the most memory that a training step holds, in bytes, as the plan forecasts it",
}
