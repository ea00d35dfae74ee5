"""A run is told where its script's adapter lies."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import nn


@hookimpl
def lorakit_before_save(model: nn.Module, folder: Path) -> None:
    # which a run alone loads
    running = sys.modules.get("lorakit.running.script")
    if running is not None and model is running.script().model:
        from lorakit.artifacts.owning import place_of

        running.script().saved(place_of(folder))
