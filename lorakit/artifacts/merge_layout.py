"""A merge of an adapter folder into a model folder, decided from names and shapes before any weight is read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorakit.artifacts.base_tensors import WeightsNeededError
from lorakit.artifacts.checkpoint import StoredTensor, stored_tensors
from lorakit.artifacts.checkpoint_names import model_names
from lorakit.artifacts.loading import planned_files
from lorakit.artifacts.merge_pieces import Dtypes, Layouter, Piece, WholeModelNeeded
from lorakit.artifacts.packed_weights import packed_weights
from lorakit.artifacts.peft_names import file_names
from lorakit.artifacts.reading import AdapterFiles
from lorakit.hooks.manager import Plugins
from lorakit.planning.plan import Plan, PlanEntry
from lorakit.planning.reading import read_inventory
from lorakit.values import ModelReference

# a shard is in memory whole until it is written
SHARD_BYTES = 10**9


@dataclass(frozen=True)
class Layout:
    """A merge, decided: the pieces in the order in which they are written, and all that computing them takes.

    `dtype` is what most of it is written in, `wanted` what was asked for.
    """

    base: Path
    model: nn.Module
    stored: Mapping[str, StoredTensor]
    files: AdapterFiles
    plan: Plan
    pieces: tuple[Piece, ...]
    untied: tuple[str, ...]
    dtype: torch.dtype
    wanted: torch.dtype | None

    @property
    def bytes(self) -> int:
        """The size of what is written."""
        return sum(piece.bytes for piece in self.pieces)

    @property
    def stored_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.stored.values())

    @property
    def is_packed(self) -> bool:
        return any(piece.parts for piece in self.pieces)

    @cached_property
    def file_names(self) -> Callable[[PlanEntry], dict[str, str]]:
        """What gives the names of an entry's tensors in the adapter's file, by those of its parameters."""
        return file_names(self.plan)

    @cached_property
    def shards(self) -> tuple[tuple[Piece, ...], ...]:
        """The pieces by the file that they go to: at most SHARD_BYTES in one, unless a single tensor is larger."""
        shards: list[list[Piece]] = [[]]
        room = SHARD_BYTES
        for piece in self.pieces:
            if shards[-1] and piece.bytes > room:
                shards.append([])
                room = SHARD_BYTES
            shards[-1].append(piece)
            room -= piece.bytes
        return tuple(map(tuple, shards))


def merge_layout(
    adapter: Path, base: Path, model: nn.Module, plugins: Plugins, *, dtype: torch.dtype | None, allow_pickle: bool
) -> Layout:
    """Return how an adapter folder merges into a model folder; `model` is the folder's structure on meta tensors.

    `dtype` is what weights are written in, their own if it is None.
    Raises: AdapterError, ModelError, WholeModelNeeded.
    """
    stored = stored_tensors(base)
    if not stored:
        raise WholeModelNeeded(f"{base} holds no model.safetensors")
    packed = _packed(model, stored)
    if packed:
        model = _unquantized(model, plugins)
    inventory = read_inventory(model, plugins)
    try:
        files, plan = planned_files(adapter, inventory, model, plugins, quantize=False, allow_pickle=allow_pickle)
    except WeightsNeededError as error:
        raise WholeModelNeeded(str(error)) from error
    serving = {part for parts in packed.values() for part in parts}
    names, converts = model_names([name for name in stored if name not in serving], model)
    layouter = Layouter(inventory, files, plan, stored, packed, names, Dtypes(model, stored, packed, dtype))
    pieces, untied = layouter.pieces(converts)
    held: dict[torch.dtype, int] = {}
    for piece in pieces:
        if piece.dtype is not None:
            held[piece.dtype] = held.get(piece.dtype, 0) + piece.bytes
    return Layout(base, model, stored, files, plan, pieces, untied, max(held, key=held.__getitem__), dtype)


def _unquantized(model: Any, plugins: Plugins) -> nn.Module:
    """Return the structure that the merged folder will hold, where the base's layers are quantized ones."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    return plugins.load_model(ModelReference(type(model).__name__, config, with_weights=False))


def _packed(model: nn.Module, stored: Mapping[str, StoredTensor]) -> dict[str, tuple[str, ...]]:
    settings: Any = getattr(getattr(model, "config", None), "quantization_config", None) or {}
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    if method is None:
        return {}
    if str(getattr(method, "value", method)) != "bitsandbytes":
        raise WholeModelNeeded(f"its weights are stored by {method}")
    return packed_weights(stored)
