"""Hooks: what plugins can add to lorakit, and how they are found."""

from lorakit.hooks.finite import require_finite
from lorakit.hooks.manager import Plugins
from lorakit.hooks.protocols import (
    CalibratedQuantizer,
    Checkpointed,
    Initializer,
    Kernel,
    Linear,
    Method,
    OptimizerFactory,
    Quantizer,
    Role,
)
from lorakit.hooks.specs import hookimpl, hookspec
from lorakit.values import InitContext, LayerShape, LowRank, ModelReference, QuantizedWeight, Storage

__all__ = [
    "CalibratedQuantizer",
    "Checkpointed",
    "InitContext",
    "Initializer",
    "Kernel",
    "LayerShape",
    "Linear",
    "LowRank",
    "Method",
    "ModelReference",
    "OptimizerFactory",
    "Plugins",
    "QuantizedWeight",
    "Quantizer",
    "Role",
    "Storage",
    "hookimpl",
    "hookspec",
    "require_finite",
]
