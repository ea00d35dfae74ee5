"""Methods `dora`, `ia3` and `vera`, and the starts `pissa` and `eva`."""

from __future__ import annotations

from lorakit import hookimpl
from lorakit.hooks import Method
from lorakit_methods.dora import DoRA
from lorakit_methods.ia3 import IA3
from lorakit_methods.vera import VeRA

__all__ = ["IA3", "DoRA", "VeRA", "lorakit_methods"]


@hookimpl
def lorakit_methods() -> list[type[Method]]:
    return [DoRA, IA3, VeRA]
