"""The tensors of an adapter that PEFT saved, by the paths that they have in the model of today."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor, nn

from lorakit.artifacts.foreign_names import ROWS, inner_names, put
from lorakit.artifacts.peft_names import BASE, LORA, PREFIX
from lorakit.artifacts.reading import AdapterFiles
from lorakit.artifacts.scales import Scales
from lorakit.errors import AdapterError
from lorakit.hooks.protocols import FormerNames, FormerParts
from lorakit.planning.inventory import Inventory
from lorakit.planning.place import Place
from lorakit.values import LowRankPart, Renamed

if TYPE_CHECKING:
    from lorakit.hooks.manager import Plugins


@dataclass(frozen=True)
class Moved:
    """An adapter's files with every name as PEFT would save it for this model.

    `former` is what the files call a module, by its path here, where it is something else. `alphas` are those of the
    adapters that were put together out of several, by path: no config speaks of them.
    """

    files: AdapterFiles
    former: Mapping[str, str] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)


def moved(files: AdapterFiles, inventory: Inventory, model: nn.Module, plugins: Plugins) -> Moved:
    """Return an adapter's files by the names of this model.

    A file may come from a release of the model's library in which its modules lay elsewhere, or where experts that are
    one stack now were modules of their own; and it may lack PEFT's prefix, or have it twice.
    Raises: AdapterError naming tensors that cannot be brought together.
    """
    return _Mover(files, inventory, model, plugins).moved()


@dataclass(frozen=True, slots=True)
class _Name:
    """A tensor's name in the model: a module's path, and what follows on it."""

    path: str
    end: str

    @classmethod
    def of(cls, inner: str) -> _Name:
        if found := LORA.fullmatch(inner):
            return cls(found["path"], f".{found['matrix']}")
        if inner.endswith(f".{ROWS}"):
            return cls(inner.removesuffix(f".{ROWS}"), f".{ROWS}")
        place = Place(inner, is_parameter=True)
        return cls(place.holder, f".{place.leaf}")

    @property
    def bare(self) -> str:
        """The path in a model without adapters."""
        return ".".join(segment for segment in self.path.split(".") if segment != BASE[1:])

    @property
    def weight(self) -> str:
        """The weight that a table of renamings is asked for."""
        is_own = self.end.startswith(".lora_") or self.end == f".{ROWS}"
        return f"{self.bare}.weight" if is_own else f"{self.bare}{self.end}"


class _Mover:
    def __init__(self, files: AdapterFiles, inventory: Inventory, model: nn.Module, plugins: Plugins) -> None:
        self._files, self._inventory, self._model, self._plugins = files, inventory, model, plugins
        self._scales = Scales(files.folder, files.config)
        self._tensors: dict[str, Tensor] = {}
        self._former: dict[str, str] = {}
        self._parts: dict[str, dict[str, tuple[Renamed, dict[str, Tensor]]]] = {}

    def moved(self) -> Moved:
        for name, tensor in self._files.tensors.items():
            self._place(name, tensor)
        alphas: dict[str, float] = {}
        for weight, parts in self._parts.items():
            alphas |= self._join(weight, parts)
        return Moved(replace(self._files, tensors=self._tensors), self._former, alphas)

    @cached_property
    def _names(self) -> FormerNames | None:
        return self._plugins.former_names(self._model, self._inventory.weights)

    def _place(self, name: str, tensor: Tensor) -> None:
        names = [_Name.of(inner) for inner in inner_names(name)]
        for one in names:
            if one.bare in self._inventory.modules:
                return self._put(one.path, one.end, tensor)
        for one in names:
            if self._names and (renamed := self._names.today(one.weight)):
                return self._rename(one, renamed, tensor)
        # which module it is that is not there, is said where the plan is made
        return self._put(names[0].path, names[0].end, tensor)

    def _put(self, path: str, end: str, tensor: Tensor) -> None:
        put(self._tensors, f"{PREFIX}{path}{end}", tensor, self._files.folder)

    def _rename(self, name: _Name, renamed: Renamed, tensor: Tensor) -> None:
        if renamed.pattern is None:
            path = Place(renamed.name, is_parameter=True).holder
            self._former[path] = name.bare
            end = f"{BASE * name.path.count(BASE)}{name.end}"
            self._put(path, end if name.weight.endswith(".weight") else f".{Place(renamed.name).leaf}", tensor)
        elif name.end in (".lora_A.weight", ".lora_B.weight"):
            _, pair = self._parts.setdefault(renamed.name, {}).setdefault(name.path, (renamed, {}))
            put(pair, name.end, tensor, self._files.folder)
        else:
            raise AdapterError(
                f"{self._files.folder} holds `{name.path}{name.end}`, which this {self._inventory.model_class} has as "
                f"a part of `{renamed.name}`: lorakit puts together low-rank changes alone, so merge this one where it "
                "was made"
            )

    def _join(self, weight: str, parts: Mapping[str, tuple[Renamed, Mapping[str, Tensor]]]) -> dict[str, float]:
        """Put together the adapters of what is one weight here, and return its alpha by path."""
        module = self._inventory.modules.get(weight)
        stack = module.shape.stack if module and module.shape else 1
        scalings = {path: self._scaling(path, pair) for path, (_, pair) in parts.items()}
        common = next(iter(scalings.values())) if len(set(scalings.values())) == 1 else None
        low_rank = list(self._low_rank(parts, scalings if common is None else {}))
        alphas: dict[str, float] = {}
        try:
            for name, (lora_A, lora_B) in self._joined(low_rank, stack).items():
                path, rank = self._own(name, lora_A, lora_B)
                factor = 1.0 if common is None else common
                alphas[path] = factor * (math.sqrt(rank) if self._files.config.get("use_rslora") else rank)
        except ValueError as error:
            first = next(iter(parts))
            raise AdapterError(
                f"{self._files.folder} adapts `{first}` and {len(parts) - 1} more, which are `{weight}` in this "
                f"{self._inventory.model_class}, and their changes cannot be put together: {error}"
            ) from error
        return alphas

    def _scaling(self, path: str, pair: Mapping[str, Tensor]) -> float:
        for end in (".lora_A.weight", ".lora_B.weight"):
            if end not in pair or pair[end].ndim != 2:
                found = f"is {tuple(pair[end].shape)}" if end in pair else "is missing"
                raise AdapterError(f"{self._files.folder}: `{path}{end}` {found}, where a matrix is due")
        rank, other = pair[".lora_A.weight"].shape[0], pair[".lora_B.weight"].shape[1]
        if rank != other or not rank:
            raise AdapterError(f"{self._files.folder}: the two matrices of `{path}` have the ranks {rank} and {other}")
        return self._scales.scaling(path, rank)

    def _low_rank(
        self, parts: Mapping[str, tuple[Renamed, Mapping[str, Tensor]]], scalings: Mapping[str, float]
    ) -> Iterable[LowRankPart]:
        for path, (renamed, pair) in parts.items():
            lora_A, lora_B = pair[".lora_A.weight"], pair[".lora_B.weight"]
            # where they are scaled apart, in a dtype that takes the factor in
            scaled = lora_B.float() * scalings[path] if path in scalings else lora_B
            yield LowRankPart(renamed, lora_A, scaled)

    def _joined(self, parts: Sequence[LowRankPart], stack: int) -> Mapping[str, tuple[Tensor, Tensor]]:
        if not isinstance(self._names, FormerParts):
            raise ValueError("the plugin that knows these former names does not say how (`joined`)")
        return self._names.joined(parts, stack)

    def _own(self, name: str, lora_A: Tensor, lora_B: Tensor) -> tuple[str, int]:
        """Take in a pair as PEFT saves it, and return the path and the rank that it has here. Raises: ValueError."""
        path = name if name in self._inventory.modules else Place(name, is_parameter=True).holder
        module, rank = self._inventory.modules.get(path), lora_A.shape[-2]
        if module is None or module.shape is None or module.weight is None:
            raise ValueError(f"no adapter fits `{name}`")
        made = (*lora_B.shape[:-1], lora_A.shape[-1])
        if made != module.weight.shape or lora_A.shape[:-2] != lora_B.shape[:-2]:
            raise ValueError(f"they make {made} together, and `{name}` is {module.weight.shape}")
        if module.shape.kind == "stack_transposed":
            lora_A, lora_B = lora_B.transpose(-1, -2), lora_A.transpose(-1, -2)
        if lora_A.ndim == 3:
            lora_A, lora_B = lora_A.flatten(0, 1), lora_B.permute(1, 2, 0).flatten(1)
        self._put(path, ".lora_A.weight", lora_A.contiguous())
        self._put(path, ".lora_B.weight", lora_B.contiguous())
        return path, rank
