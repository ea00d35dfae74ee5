"""The inventory: everything that planning needs to know of a model, free of torch."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from lorakit.planning.dataflow import Kept
from lorakit.planning.place import Place
from lorakit.values import LayerShape


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """One parameter of a module: `numel` elements of `itemsize` bytes; equal `weight_id`s are one tensor (a tie).

    A weight that a quantizer holds has its true shape, the quantizer's name as dtype, and `stored_bytes`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    weight_id: int
    stored_bytes: int | None = None

    @property
    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def bytes(self) -> int:
        return self.numel * self.itemsize if self.stored_bytes is None else self.stored_bytes


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """One module under its first name; `shape` is None for a module that no adapter fits.

    A stack of matrices that a module holds as one parameter stands here as a module of its own, named by its path.
    `buffers` are those of its own that a checkpoint holds. Modules with equal `input` read the same tensor; None says
    that it is not known.
    """

    path: str
    class_name: str
    bases: tuple[str, ...]
    shape: LayerShape | None
    device: str
    parameters: tuple[ParameterInfo, ...]
    holds_modules: bool
    other_paths: tuple[str, ...] = ()
    buffers: tuple[ParameterInfo, ...] = ()
    input: int | None = None

    @property
    def is_parameter(self) -> bool:
        """Whether it is a parameter of a module, and not a module."""
        return self.shape is not None and self.shape.is_parameter

    @property
    def weight(self) -> ParameterInfo | None:
        """The parameter called `weight`, if the module has one of its own; a parameter is its own weight."""
        if self.is_parameter:
            return self.parameters[0]
        for parameter in self.parameters:
            if parameter.name == "weight":
                return parameter
        return None


@dataclass(frozen=True)
class Inventory:
    """A model as planning sees it.

    `input_path` and `output_path` are the modules that the model itself calls its input and output embeddings;
    `head_paths` are the output embeddings, or for a model without them the Linear-like layers outside its base model.
    `settings` are the plain entries of a Hugging Face config, empty for any other model.
    `kept` is what autograd keeps of a step, where the model could be run on meta tensors. Once the model is `adapted`,
    what its adapters compute with stays as it is stored.
    `former_paths` are what earlier releases of the model's library called modules that lie elsewhere now, by path.
    """

    model_class: str
    modules: Mapping[str, ModuleInfo]
    input_path: str | None = None
    output_path: str | None = None
    head_paths: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    kept: Kept | None = None
    former_paths: Mapping[str, str] = field(default_factory=dict)
    adapted: bool = False

    @property
    def weights(self) -> tuple[str, ...]:
        """The names of all parameters, however many hold one tensor."""
        return tuple(name for names in self.owners.values() for name in names)

    @functools.cached_property
    def children(self) -> Mapping[str, tuple[str, ...]]:
        """The direct children of every module, by path."""
        found: dict[str, list[str]] = {}
        for path in self.modules:
            if path:
                found.setdefault(Place(path).holder, []).append(path)
        return {path: tuple(paths) for path, paths in found.items()}

    @functools.cached_property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The Linear-like layers that read one tensor, by path, where there are two or more, in the model's order."""
        found: dict[int, list[str]] = {}
        for path, module in self.modules.items():
            if module.input is not None and module.shape is not None and module.shape.is_linear:
                found.setdefault(module.input, []).append(path)
        return tuple(tuple(paths) for paths in found.values() if len(paths) > 1)

    @functools.cached_property
    def owners(self) -> Mapping[int, tuple[str, ...]]:
        """The parameters that hold each tensor, as `path.name`, by weight_id; more than one is a tie."""
        found: dict[int, dict[str, None]] = {}
        for module in self.modules.values():
            for parameter in module.parameters:
                found.setdefault(parameter.weight_id, {})[Place(module.path).inside(parameter.name)] = None
        return {weight_id: tuple(names) for weight_id, names in found.items()}

    def unique_parameters(self) -> Iterator[ParameterInfo]:
        """Yield every tensor once, however many modules hold it."""
        seen: set[int] = set()
        for module in self.modules.values():
            for parameter in module.parameters:
                if parameter.weight_id not in seen:
                    seen.add(parameter.weight_id)
                    yield parameter

    @functools.cached_property
    def total_parameters(self) -> int:
        return sum(parameter.numel for parameter in self.unique_parameters())

    @functools.cached_property
    def total_bytes(self) -> int:
        return sum(parameter.bytes for parameter in self.unique_parameters())
