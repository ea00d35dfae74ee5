"""The generators of random numbers that a step draws from, kept in a checkpoint."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

TENSORS, PYTHON = "generators.safetensors", "generator.json"


def save_generators(folder: Path) -> None:
    """Write torch's generators, the CPU's and every accelerator's, and Python's own into a checkpoint's folder."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    save_file(states, folder / TENSORS)
    (folder / PYTHON).write_text(json.dumps(random.getstate()), encoding="utf-8")


def read_generators(folder: Path) -> Mapping[str, Any]:
    """Return what `save_generators` wrote; nothing for a checkpoint from before there was such a file."""
    if not (folder / TENSORS).is_file():
        return {}
    version, numbers, gauss = json.loads((folder / PYTHON).read_text(encoding="utf-8"))
    return {**load_file(folder / TENSORS), "python": (version, tuple(numbers), gauss)}


def restore_generators(states: Mapping[str, Any]) -> None:
    """Let the generators go on from where they stood; those of devices that are not here are left out."""
    for name, state in states.items():
        if name == "python":
            random.setstate(state)
        elif name == "cpu":
            torch.set_rng_state(state)
        elif torch.cuda.is_available() and int(name.partition(":")[2]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, name)
