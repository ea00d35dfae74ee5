"""The generators of random numbers that a step draws from, kept in a checkpoint."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

TENSORS, PYTHON = "generators{}.safetensors", "generator{}.json"


def save_generators(folder: Path, rank: int = 0) -> None:
    """Write torch's generators, the CPU's and every accelerator's, and Python's own into a checkpoint's folder.

    Those of further processes lie beside the first's.
    """
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    save_file(states, _named(folder, TENSORS, rank))
    _named(folder, PYTHON, rank).write_text(json.dumps(random.getstate()), encoding="utf-8")


def read_generators(folder: Path, rank: int = 0) -> Mapping[str, Any]:
    """Return what `save_generators` wrote; nothing where a checkpoint is of fewer processes, or has no such file."""
    if not (tensors := _named(folder, TENSORS, rank)).is_file():
        return {}
    version, numbers, gauss = json.loads(_named(folder, PYTHON, rank).read_text(encoding="utf-8"))
    return {**load_file(tensors), "python": (version, tuple(numbers), gauss)}


def restore_generators(states: Mapping[str, Any]) -> None:
    """Let the generators go on from where they stood; those of devices that are not here are left out."""
    for name, state in states.items():
        if name == "python":
            random.setstate(state)
        elif name == "cpu":
            torch.set_rng_state(state)
        elif torch.cuda.is_available() and int(name.partition(":")[2]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, name)


def generator_files(count: int) -> list[str]:
    """Return the files that several processes write of it, none for one alone."""
    return [_named(Path(), TENSORS, rank).name for rank in range(count)] if count > 1 else []


def _named(folder: Path, name: str, rank: int) -> Path:
    return folder / name.format(f"-{rank}" if rank else "")
