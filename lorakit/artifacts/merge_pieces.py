"""Which parameter each tensor of a checkpoint is, and what a merge makes of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from lorakit.artifacts.checkpoint import StoredTensor
from lorakit.artifacts.packed_weights import packed_dtype
from lorakit.artifacts.peft_names import PREFIX
from lorakit.artifacts.reading import AdapterFiles
from lorakit.errors import AdapterError
from lorakit.planning.inventory import Inventory
from lorakit.planning.place import Place
from lorakit.planning.plan import Plan, PlanEntry

CASTABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class WholeModelNeeded(Exception):  # noqa: N818  (no failure: the merge goes another way)
    """A merge that cannot go tensor by tensor; the text says why."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of the merged model: where it comes from, what changes it, and how it is written.

    `source` is the checkpoint's name, `parts` what belongs to it if it is packed, `parameter` the model's name, `entry`
    the adapter on it, `trained` the tensor of the adapter's file that replaces it, `bias_of` the adapter whose layer
    adds it. `is_transposed` says that its layer holds it as (in_features, out_features).
    """

    name: str
    source: str | None
    parts: tuple[str, ...]
    parameter: str | None
    entry: PlanEntry | None
    trained: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    is_transposed: bool = False
    bias_of: PlanEntry | None = None

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * (self.dtype or torch.uint8).itemsize


class Dtypes:
    """The dtype that each tensor of a checkpoint is written in."""

    def __init__(
        self,
        model: nn.Module,
        stored: Mapping[str, StoredTensor],
        packed: Mapping[str, tuple[str, ...]],
        wanted: torch.dtype | None,
    ) -> None:
        self.wanted, self._stored, self._packed = wanted, stored, packed
        self._usual = getattr(getattr(model, "config", None), "dtype", None) or torch.float16
        # what transformers keeps in float32 whatever the rest of the model is in
        kept: dict[str, torch.dtype] = getattr(model, "_get_dtype_plan", lambda _: {})(wanted) if wanted else {}
        self._kept = [name.replace("*", ".*") for name in kept]

    def of(self, source: str, parameter: str) -> torch.dtype | None:
        own = self._stored[source].dtype
        if source in self._packed:
            return self.wanted or packed_dtype(self._packed[source], self._stored, self._usual)
        if self.wanted is None or own not in CASTABLE:
            return own
        return torch.float32 if any(re.search(pattern, parameter) for pattern in self._kept) else self.wanted


class Layouter:
    """Follows every tensor of a checkpoint to its parameter, and from there to what changes it."""

    def __init__(
        self,
        inventory: Inventory,
        files: AdapterFiles,
        plan: Plan,
        stored: Mapping[str, StoredTensor],
        packed: Mapping[str, tuple[str, ...]],
        names: Mapping[str, str],
        dtypes: Dtypes,
    ) -> None:
        self._inventory, self._files = inventory, files
        self._stored, self._packed, self._dtypes = stored, packed, dtypes
        self._serving = {part for parts in packed.values() for part in parts}
        first = dict(_first_names(inventory))
        self._names = {source: first.get(name, name) for source, name in names.items()}
        self._ids = {name: key for key, owners in inventory.owners.items() for name in owners}
        self._shapes = {
            Place(module.path).inside(parameter.name): parameter.shape
            for module in inventory.modules.values()
            for parameter in module.parameters
        }
        self._adapted = {Place.of(entry).weight: entry for entry in plan.entries if entry.adapter is not None}
        self._biases = {Place(entry.path).inside("bias"): entry for entry in plan.entries if entry.adapter is not None}
        self._trained = {name: file for entry in plan.entries for name, file in _trained(entry, inventory, files)}

    def pieces(self, converts: bool) -> tuple[tuple[Piece, ...], tuple[str, ...]]:
        """Return the pieces, and the modules whose weight was shared and becomes their own.

        `converts` says that the model makes parameters that are not found here out of several stored tensors.
        """
        if odd := next((name for name in self._adapted if name not in self._ids), None):
            raise WholeModelNeeded(f"the model holds no `{odd}`, and its adapter changes something else")
        tied = [name for name in self._adapted if len(self._owners(name)) > 1]
        pieces = []
        for source in self._stored:
            if source not in self._serving:
                name = self._names.get(source)
                pieces.append(self._piece(source, source, name))
                if tied and name in self._ids:
                    pieces += self._untied(source, name)
        self._check(pieces, converts)
        written = {self._ids[piece.parameter] for piece in pieces if piece.parameter in self._ids}
        new = [name for name in self._trained if name in self._ids and self._ids[name] not in written]
        if new and converts:
            raise WholeModelNeeded(_made(new[0]))
        pieces += map(self._new, new)
        written |= {self._ids[name] for name in new}
        lacking = next((name for name, key in self._ids.items() if key not in written), None)
        if lacking and not converts:
            # whoever reads the whole model knows whether it may be without
            raise WholeModelNeeded(f"the base holds no `{lacking}`")
        return tuple(pieces), tuple(self._adapted[name].path for name in tied)

    def _owners(self, name: str) -> tuple[str, ...]:
        return self._inventory.owners[self._ids[name]]

    def _untied(self, source: str, name: str) -> Iterator[Piece]:
        """Yield the other ends of a tie, for which the checkpoint holds no tensor of their own."""
        own = set(self._names.values())
        others = [other for other in self._owners(name) if other not in own]
        if others and name == next(end for end in self._owners(name) if end in own):
            yield from (self._piece(other, source, other) for other in others)

    def _piece(self, name: str, source: str, parameter: str | None) -> Piece:
        parts = self._packed.get(source, ())
        shape = self._shapes.get(parameter or "", ()) if parts else self._stored[source].shape
        return Piece(
            name,
            source,
            parts,
            parameter,
            self._adapted.get(parameter or ""),
            self._replacing(parameter),
            shape,
            self._dtypes.of(source, parameter or source),
            self._is_transposed(parameter),
            self._biases.get(parameter or ""),
        )

    def _is_transposed(self, parameter: str | None) -> bool:
        layer = self._inventory.modules.get(Place(parameter, is_parameter=True).holder) if parameter else None
        return layer is not None and layer.shape is not None and layer.shape.kind == "linear_transposed"

    def _replacing(self, parameter: str | None) -> str | None:
        """Return the trained tensor that takes a parameter's place: its own, or that of another end of its tie."""
        if parameter not in self._ids:
            # a buffer
            return self._trained.get(parameter or "")
        ends = (parameter, *self._owners(parameter))
        return next((self._trained[end] for end in ends if end in self._trained), None)

    def _new(self, name: str) -> Piece:
        tensor = self._files.tensors[self._trained[name]]
        dtype = self._dtypes.wanted or tensor.dtype
        return Piece(name, None, (), name, None, self._trained[name], tuple(tensor.shape), dtype)

    def _check(self, pieces: list[Piece], converts: bool) -> None:
        """Raise unless every adapter found its weight, in a dtype that can be computed in."""
        if strange := next((piece for piece in pieces if piece.parts and piece.parameter is None), None):
            raise WholeModelNeeded(f"the packed `{strange.name}` is no weight of the model by itself")
        found = {piece.parameter: piece for piece in pieces}
        for name, entry in self._adapted.items():
            if name in found and found[name].dtype in CASTABLE:
                continue
            if name in found:
                raise WholeModelNeeded(f"`{name}` is stored in no dtype of 16 bits or more")
            if converts:
                raise WholeModelNeeded(_made(name))
            raise AdapterError(f"{self._files.folder} adapts `{entry.path}`, for which the base holds no `{name}`")


def _made(name: str) -> str:
    return f"transformers makes `{name}` out of several stored tensors as it loads"


def _first_names(inventory: Inventory) -> Iterator[tuple[str, str]]:
    """Yield (name, first name) of the parameters of modules that a model holds under several paths."""
    for module in inventory.modules.values():
        for path in module.other_paths:
            for parameter in module.parameters:
                yield Place(path).inside(parameter.name), Place(module.path).inside(parameter.name)


def _trained(entry: PlanEntry, inventory: Inventory, files: AdapterFiles) -> Iterator[tuple[str, str]]:
    """Yield the parameters that an entry trained in full, with the names of their tensors in the adapter's file."""
    module = inventory.modules[entry.path]
    for parameter in (*module.parameters, *module.buffers):
        name = Place(entry.path).inside(parameter.name)
        for file_name in (f"{PREFIX}{name}", f"{PREFIX}{entry.path}.base_layer.{parameter.name}"):
            if file_name in files.tensors:
                yield name, file_name
