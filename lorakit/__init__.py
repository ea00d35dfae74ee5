"""lorakit: a small declarative language for low-rank fine-tuning, applied to Hugging Face and plain PyTorch models."""

from lorakit.api import adapters, apply, last_checkpoint, load, merge, optimizer, parse, plan, save, summary
from lorakit.errors import (
    AdapterError,
    DataError,
    LorakitError,
    ModelError,
    OutputError,
    PlanError,
    PluginError,
    SpecError,
    TrainingError,
    WriteError,
)
from lorakit.hooks import hookimpl
from lorakit.version import __version__

__all__ = [
    "AdapterError",
    "DataError",
    "LorakitError",
    "ModelError",
    "OutputError",
    "PlanError",
    "PluginError",
    "SpecError",
    "TrainingError",
    "WriteError",
    "__version__",
    "adapters",
    "apply",
    "hookimpl",
    "last_checkpoint",
    "load",
    "merge",
    "optimizer",
    "parse",
    "plan",
    "save",
    "summary",
]
