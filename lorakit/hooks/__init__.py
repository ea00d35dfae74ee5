"""Hooks: what plugins can add to lorakit, how they are found, and every value that they are given or give back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorakit.hooks.finite import require_finite
from lorakit.hooks.low_rank import low_rank_fields, low_rank_table, start_low_rank
from lorakit.hooks.manager import Plugins
from lorakit.hooks.protocols import (
    Adapter,
    CalibratedQuantizer,
    Checkpointed,
    FormerNames,
    FormerParts,
    Initializer,
    Kernel,
    Linear,
    Method,
    Observer,
    OptimizerFactory,
    Quantizer,
    RankMover,
    Role,
)
from lorakit.hooks.specs import hookimpl, hookspec
from lorakit.hooks.starting import StartContext
from lorakit.language.statements import PluginCall
from lorakit.values import LayerShape, LowRank, LowRankPart, ModelReference, QuantizedWeight, Renamed, Storage

if TYPE_CHECKING:
    from lorakit.planning.inventory import Inventory, ModuleInfo, ParameterInfo
    from lorakit.planning.plan import (
        AdapterPlan,
        Bytes,
        Memory,
        OptimizerPlan,
        ParameterPlan,
        Plan,
        PlanEntry,
        RuleSummary,
        SelectorCount,
        Settings,
    )

__all__ = [
    "Adapter",
    "AdapterPlan",
    "Bytes",
    "CalibratedQuantizer",
    "Checkpointed",
    "FormerNames",
    "FormerParts",
    "Initializer",
    "Inventory",
    "Kernel",
    "LayerShape",
    "Linear",
    "LowRank",
    "LowRankPart",
    "Memory",
    "Method",
    "ModelReference",
    "ModuleInfo",
    "Observer",
    "OptimizerFactory",
    "OptimizerPlan",
    "ParameterInfo",
    "ParameterPlan",
    "Plan",
    "PlanEntry",
    "PluginCall",
    "Plugins",
    "QuantizedWeight",
    "Quantizer",
    "RankMover",
    "Renamed",
    "Role",
    "RuleSummary",
    "SelectorCount",
    "Settings",
    "StartContext",
    "Storage",
    "hookimpl",
    "hookspec",
    "low_rank_fields",
    "low_rank_table",
    "require_finite",
    "start_low_rank",
]

# These load when they are asked for: whoever reads a spec plans nothing
_LATER = {
    "inventory": ("Inventory", "ModuleInfo", "ParameterInfo"),
    "plan": (
        "AdapterPlan",
        "Bytes",
        "Memory",
        "OptimizerPlan",
        "ParameterPlan",
        "Plan",
        "PlanEntry",
        "RuleSummary",
        "SelectorCount",
        "Settings",
    ),
}


def __getattr__(name: str) -> object:
    for module, names in _LATER.items():
        if name in names:
            from importlib import import_module

            return getattr(import_module(f"lorakit.planning.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
