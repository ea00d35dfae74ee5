"""What every Python of a run does first: wait for the libraries by which scripts load and train, and be no burden else.

It is imported as `sitecustomize` is. Nothing is loaded here that a script might want to load otherwise, or not at all.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from types import ModuleType

from lorakit.awaiting import once_loaded
from lorakit.running.asked import FOLDER

# what stands around each library's own function, once it has loaded: a name in `lorakit.running.around`
AWAITED = {
    "transformers.modeling_utils": "loading",
    "transformers.trainer": "training",
    "accelerate.accelerator": "checkpointing",
    "peft.utils.other": "preparing",
}


def begin(folder: str) -> None:
    """Let the libraries of this Python be waited for, and leave it otherwise as it would have started."""
    # it has done its work; what this Python starts has it from the environment
    sys.path[:] = [one for one in sys.path if one != folder]
    _start_as_usual()
    if os.environ.get(FOLDER) == folder:
        for name, around in AWAITED.items():
            once_loaded(name, functools.partial(_attend, around))


def _start_as_usual() -> None:
    """Import the `sitecustomize` that the run's stands in front of."""
    ours = sys.modules.pop("sitecustomize", None)
    try:
        importlib.import_module("sitecustomize")
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
    finally:
        if ours is not None:
            # the import that is going on looks for it
            sys.modules.setdefault("sitecustomize", ours)


def _attend(around: str, module: ModuleType) -> None:
    getattr(importlib.import_module("lorakit.running.around"), around)(module)
