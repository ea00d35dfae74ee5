"""Plugins with a fault planted in them, and what checks say of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from lorakit.testing import Check, CheckError


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
