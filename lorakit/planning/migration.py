"""Plans of earlier versions, brought to the present one as plain JSON values.

Version 1 held what was LoRA's as fields of every adapter, and counted the parameters instead of naming them. A plan
that comes from it has adapters without a table, which `completed` fills in from the methods. Version 2 knew of no rule
that nobody wrote: whatever its entries do not name stays as it is. Version 3 knew of no limit that a step keeps to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lorakit.errors import PlanError

SETTINGS = ("rank", "alpha", "scaling", "dropout", "init", "lr_ratio")


def migrated(plain: Mapping[str, Any], version: int) -> Mapping[str, Any]:
    """Return a plan of any earlier version as one of `version`. Raises: PlanError if there is no way to it."""
    found = plain.get("version")
    while found != version:
        if found not in STEPS:
            raise PlanError(f"this plan is of version {found}; this lorakit reads {min(STEPS)} to {version}")
        try:
            plain = STEPS[found](plain)
        except (KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"this is no plan: {type(error).__name__}: {error}") from error
        found = plain["version"]
    return plain


def _from_1(plain: Mapping[str, Any]) -> Mapping[str, Any]:
    entries = [
        {**entry, "adapter": _adapter_of_1(entry["adapter"])} if entry["adapter"] else entry
        for entry in plain["entries"]
    ]
    return {**plain, "version": 2, "entries": entries}


def _adapter_of_1(adapter: Mapping[str, Any]) -> Mapping[str, Any]:
    kept = {name: value for name, value in adapter.items() if name not in (*SETTINGS, "parameters")}
    return {**kept, "settings": {name: adapter[name] for name in SETTINGS}, "parameters": []}


def _from_2(plain: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**plain, "version": 3}


def _from_3(plain: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**plain, "version": 4}


STEPS: Mapping[Any, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {1: _from_1, 2: _from_2, 3: _from_3}
