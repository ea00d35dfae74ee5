"""What every Python of a run does first: wait for the libraries by which scripts load and train, and be no burden else.

It is imported as `sitecustomize` is. Nothing is loaded here that a script might want to load otherwise, or not at all.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from lorakit.running.asked import FOLDER

# what stands around each library's own function, once it has loaded: a name in `lorakit.running.around`
AWAITED = {
    "transformers.modeling_utils": "loading",
    "transformers.trainer": "training",
    "accelerate.accelerator": "checkpointing",
    "peft.utils.other": "preparing",
    "peft.mapping_func": "adapting",
}


def begin(folder: str) -> None:
    """Let the libraries of this Python be waited for, and leave it otherwise as it would have started."""
    # it has done its work; what this Python starts has it from the environment
    sys.path[:] = [one for one in sys.path if one != folder]
    _start_as_usual()
    if os.environ.get(FOLDER) == folder:
        sys.meta_path.insert(0, Awaiting())


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


class Awaiting:
    """Finds libraries as the others do, and has a word with those that are awaited once they are loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in AWAITED:
            return None
        for finder in sys.meta_path:
            if finder is not self and (found := finder.find_spec(name, path, target)) is not None:
                _attend(found, AWAITED[name])
                return found
        return None


def _attend(spec: ModuleSpec, around: str) -> None:
    loader: Any = spec.loader
    load = loader.exec_module

    def load_and_stand_around(module: ModuleType) -> None:
        load(module)
        getattr(importlib.import_module("lorakit.running.around"), around)(module)

    loader.exec_module = load_and_stand_around
