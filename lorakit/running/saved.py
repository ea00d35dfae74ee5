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
    # a folder in the making has another name
    if running is not None and model is running.script().model and not folder.name.startswith("."):
        running.script().saved(folder)
