"""lorakit: a small declarative language for low-rank fine-tuning, applied to Hugging Face and plain PyTorch models."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
from lorakit.version import __version__

if TYPE_CHECKING:
    from lorakit.api import (
        adapters,
        apply,
        capture,
        compile_blocks,
        generate,
        last_checkpoint,
        load,
        merge,
        optimizer,
        paged,
        parse,
        plan,
        save,
        shard,
        summary,
        survive,
    )
    from lorakit.hooks import hookimpl
    from lorakit.stepping.step import Step
    from lorakit.trainers.accelerate_states import checkpoint_adapters
    from lorakit.trainers.lightning import lightning_callback
    from lorakit.trainers.peft import peft, peft_config

__all__ = [
    "AdapterError",
    "DataError",
    "LorakitError",
    "ModelError",
    "OutputError",
    "PlanError",
    "PluginError",
    "SpecError",
    "Step",
    "TrainingError",
    "WriteError",
    "__version__",
    "adapters",
    "apply",
    "capture",
    "checkpoint_adapters",
    "compile_blocks",
    "generate",
    "hookimpl",
    "last_checkpoint",
    "lightning_callback",
    "load",
    "merge",
    "optimizer",
    "paged",
    "parse",
    "peft",
    "peft_config",
    "plan",
    "save",
    "shard",
    "summary",
    "survive",
]

# These load when they are asked for: the command line starts without what its command does not use
_LATER = {
    "hookimpl": "lorakit.hooks",
    "Step": "lorakit.stepping.step",
    "checkpoint_adapters": "lorakit.trainers.accelerate_states",
    "lightning_callback": "lorakit.trainers.lightning",
    "peft": "lorakit.trainers.peft",
    "peft_config": "lorakit.trainers.peft",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATER.get(name, "lorakit.api")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
