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
    DataFormat,
    DataShape,
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
from lorakit.language.statements import PluginCall

if TYPE_CHECKING:
    from lorakit.data.examples import Chat, Completion, Example, LeftOut, Text
    from lorakit.data.fields import Fields
    from lorakit.data.messages import chat_of, read_messages, read_tools
    from lorakit.data.rows import Row, read_text
    from lorakit.hooks.starting import StartContext
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
    from lorakit.values import LayerShape, LowRank, LowRankPart, ModelReference, QuantizedWeight, Renamed, Storage

__all__ = [
    "Adapter",
    "AdapterPlan",
    "Bytes",
    "CalibratedQuantizer",
    "Chat",
    "Checkpointed",
    "Completion",
    "DataFormat",
    "DataShape",
    "Example",
    "Fields",
    "FormerNames",
    "FormerParts",
    "Initializer",
    "Inventory",
    "Kernel",
    "LayerShape",
    "LeftOut",
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
    "Row",
    "RuleSummary",
    "SelectorCount",
    "Settings",
    "StartContext",
    "Storage",
    "Text",
    "chat_of",
    "hookimpl",
    "hookspec",
    "low_rank_fields",
    "low_rank_table",
    "read_messages",
    "read_text",
    "read_tools",
    "require_finite",
    "start_low_rank",
]

# These load when they are asked for: whoever reads a spec looks at no layer, plans nothing and reads no data
_LATER = {
    "data.examples": ("Chat", "Completion", "Example", "LeftOut", "Text"),
    "data.fields": ("Fields",),
    "data.messages": ("chat_of", "read_messages", "read_tools"),
    "data.rows": ("Row", "read_text"),
    "hooks.starting": ("StartContext",),
    "planning.inventory": ("Inventory", "ModuleInfo", "ParameterInfo"),
    "planning.plan": (
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
    "values": ("LayerShape", "LowRank", "LowRankPart", "ModelReference", "QuantizedWeight", "Renamed", "Storage"),
}


def __getattr__(name: str) -> object:
    for module, names in _LATER.items():
        if name in names:
            from importlib import import_module

            return getattr(import_module(f"lorakit.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
