"""Hooks: what plugins can add to lorakit, and how they are found."""

from lorakit.hooks.finite import require_finite
from lorakit.hooks.manager import Plugins
from lorakit.hooks.protocols import (
    CalibratedQuantizer,
    Checkpointed,
    Initializer,
    Method,
    OptimizerFactory,
    Quantizer,
    Role,
)
from lorakit.hooks.specs import hookimpl, hookspec
from lorakit.values import InitContext, LayerShape, ModelReference, QuantizedWeight

__all__ = [
    "CalibratedQuantizer",
    "Checkpointed",
    "InitContext",
    "Initializer",
    "LayerShape",
    "Method",
    "ModelReference",
    "OptimizerFactory",
    "Plugins",
    "QuantizedWeight",
    "Quantizer",
    "Role",
    "hookimpl",
    "hookspec",
    "require_finite",
]
