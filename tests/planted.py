"""Plugins with a fault planted in them, and what checks say of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from lorakit.hooks import QuantizedWeight, hookimpl
from lorakit.testing import Check, CheckError


class ByTheQuantizer:
    """Multiplies by the quantizer's own `linear`, where a test gave it one."""

    name = "by_the_quantizer"

    def linear(self, storage: Any) -> Any:
        quantizer = storage.quantizer
        if not hasattr(quantizer, "linear"):
            return None

        def linear(x: Any, base: Any, bias: Any, low_rank: Any) -> Any:
            assert not low_rank
            return quantizer.linear(x, QuantizedWeight(base, storage.shape, storage.dtype), bias)

        return linear


@hookimpl
def lorakit_kernels() -> list[ByTheQuantizer]:
    return [ByTheQuantizer()]


def variant(base: type, **changes: Any) -> type:
    """Return a plugin like this one but for these attributes, under a name of its own."""
    changes = {"name": "variant", "__doc__": "A variant.", "__annotations__": {"name": ClassVar[str]}, **changes}
    return dataclasses.dataclass(frozen=True)(type("Variant", (base,), {"__module__": __name__, **changes}))


def failures(checks: Sequence[Check], name: str, enough: int = 1000) -> list[str]:
    """Return what the checks of this name say of a plugin, as soon as so many have failed."""
    found = []
    chosen = [check for check in checks if check.name == name]
    assert chosen, f"no check is called {name}"
    for check in chosen:
        try:
            check()
        except CheckError as error:
            found.append(str(error))
            if len(found) == enough:
                break
    return found
