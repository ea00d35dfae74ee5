"""What commands write beside an adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.cli.terminal import say, working

if TYPE_CHECKING:
    from torch import nn

    from lorakit.hooks.manager import Plugins


def base_writer(model: nn.Module, plugins: Plugins) -> Callable[[Path], None]:
    """Return what writes a model's quantized base into an adapter folder in the making, and says what form it has."""
    from lorakit.huggingface.quantized_base import BASE, write_base

    def write(folder: Path) -> None:
        with working("writing the quantized base"):
            form = write_base(model, folder / BASE, plugins)
        say(f"{BASE}: {form}")

    return write
