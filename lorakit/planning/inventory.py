"""The inventory: everything that planning needs to know of a model, read once and then free of torch."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lorakit.hooks.protocols import LayerShape

if TYPE_CHECKING:
    from torch import nn

    from lorakit.hooks.manager import Plugins


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """One parameter of a module: `numel` elements of `itemsize` bytes; equal `weight_id`s are one tensor (a tie)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    weight_id: int

    @property
    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def bytes(self) -> int:
        return self.numel * self.itemsize


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """One module under its first name; `shape` is None for a module that no adapter fits."""

    path: str
    class_name: str
    bases: tuple[str, ...]
    shape: LayerShape | None
    device: str
    parameters: tuple[ParameterInfo, ...]
    holds_modules: bool
    other_paths: tuple[str, ...] = ()

    @property
    def weight(self) -> ParameterInfo | None:
        """The parameter called `weight`, if the module has one of its own."""
        return next((parameter for parameter in self.parameters if parameter.name == "weight"), None)


@dataclass(frozen=True)
class Inventory:
    """A model as planning sees it.

    `input_path` and `output_path` are the modules that the model itself calls its input and output embeddings.
    `settings` are the plain entries of a Hugging Face config, empty for any other model.
    """

    model_class: str
    modules: Mapping[str, ModuleInfo]
    input_path: str | None = None
    output_path: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)

    @functools.cached_property
    def children(self) -> Mapping[str, tuple[str, ...]]:
        """The direct children of every module, by path."""
        found: dict[str, list[str]] = {}
        for path in self.modules:
            if path:
                found.setdefault(path.rpartition(".")[0], []).append(path)
        return {path: tuple(paths) for path, paths in found.items()}

    @functools.cached_property
    def owners(self) -> Mapping[int, tuple[str, ...]]:
        """The parameters that hold each tensor, as `path.name`, by weight_id; more than one is a tie."""
        found: dict[int, list[str]] = {}
        for module in self.modules.values():
            for parameter in module.parameters:
                found.setdefault(parameter.weight_id, []).append(f"{module.path}.{parameter.name}".lstrip("."))
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


def read_inventory(model: nn.Module, plugins: Plugins) -> Inventory:
    """Return the inventory of a model, which may live on meta tensors; no value of any tensor is read."""
    first_names: dict[int, str] = {}
    other_names: dict[str, list[str]] = {}
    modules: dict[str, nn.Module] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if (first := first_names.setdefault(id(module), path)) == path:
            modules[path] = module
        else:
            other_names.setdefault(first, []).append(path)
    infos = {
        path: ModuleInfo(
            path=path,
            class_name=type(module).__name__,
            bases=tuple(base.__name__ for base in type(module).__mro__[:-1]),
            shape=_shape(module, plugins),
            device=_device(module),
            parameters=tuple(
                ParameterInfo(
                    name, tuple(parameter.shape), str(parameter.dtype).removeprefix("torch."),
                    parameter.element_size(), id(parameter),
                )
                for name, parameter in module._parameters.items()
                if parameter is not None
            ),
            holds_modules=bool(module._modules),
            other_paths=tuple(other_names.get(path, ())),
        )
        for path, module in modules.items()
    }  # fmt: skip
    config = getattr(model, "config", None)
    return Inventory(
        model_class=type(model).__name__,
        modules=infos,
        input_path=_embedding_path(model, "get_input_embeddings", first_names),
        output_path=_embedding_path(model, "get_output_embeddings", first_names),
        settings=_plain_settings(config) if hasattr(config, "to_dict") else {},
    )


def _device(module: nn.Module) -> str:
    return str(next((parameter.device for parameter in module._parameters.values() if parameter is not None), ""))


def _shape(module: nn.Module, plugins: Plugins) -> LayerShape | None:
    # a module without parameters of its own is a container or an activation: nothing to adapt
    if not module._parameters:
        return None
    shape: LayerShape | None = plugins.call("lorakit_describe_module", module=module)
    return shape


def _embedding_path(model: nn.Module, getter: str, names: Mapping[int, str]) -> str | None:
    try:
        module = getattr(model, getter)()
    except (AttributeError, NotImplementedError):
        return None
    return names.get(id(module))


def _plain_settings(config: object) -> dict[str, object]:
    settings = config.to_dict()  # type: ignore[attr-defined]
    return {key: value for key, value in settings.items() if isinstance(value, int | float | str | bool)}
