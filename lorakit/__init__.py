"""lorakit: a small declarative language for low-rank fine-tuning, applied to Hugging Face and plain PyTorch models."""

from lorakit.api import adapters, apply, load, merge, optimizer, parse, plan, save, summary
from lorakit.errors import (
    AdapterError,
    DataError,
    LorakitError,
    ModelError,
    OutputError,
    PlanError,
    PluginError,
    SpecError,
    WriteError,
)
from lorakit.hooks import hookimpl

__version__ = "0.1.0"

__all__ = [
    "AdapterError",
    "DataError",
    "LorakitError",
    "ModelError",
    "OutputError",
    "PlanError",
    "PluginError",
    "SpecError",
    "WriteError",
    "adapters",
    "apply",
    "hookimpl",
    "load",
    "merge",
    "optimizer",
    "parse",
    "plan",
    "save",
    "summary",
]
