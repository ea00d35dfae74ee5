"""Methods `dora`, `ia3` and `vera`, and the starts `pissa`, `loftq` and `eva`."""

from __future__ import annotations

from lorakit import hookimpl
from lorakit.hooks import Initializer, Method
from lorakit_methods.dora import DoRA
from lorakit_methods.eva import EVA
from lorakit_methods.ia3 import IA3
from lorakit_methods.loftq import LoftQ
from lorakit_methods.pissa import PiSSA
from lorakit_methods.vera import VeRA

__all__ = ["EVA", "IA3", "DoRA", "LoftQ", "PiSSA", "VeRA", "lorakit_initializers", "lorakit_methods"]


@hookimpl
def lorakit_methods() -> list[type[Method]]:
    return [DoRA, IA3, VeRA]


@hookimpl
def lorakit_initializers() -> list[type[Initializer]]:
    return [PiSSA, LoftQ, EVA]
