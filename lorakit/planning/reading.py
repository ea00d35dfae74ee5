"""A model read into its inventory: shapes, classes and what reads what, and no value of any tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lorakit.dtypes import name_of
from lorakit.planning.dataflow import Dataflow, Example, observed
from lorakit.planning.examples import examples_of
from lorakit.planning.inventory import Inventory, ModuleInfo, ParameterInfo
from lorakit.planning.parents import weights_read_by
from lorakit.planning.place import Place
from lorakit.planning.wrappers import plain_modules
from lorakit.values import LayerShape

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lorakit.hooks.manager import Plugins
    from lorakit.hooks.protocols import FormerNames
    from lorakit.planning.plan import Plan


def read_inventory(model: nn.Module, plugins: Plugins, example: Example = None) -> Inventory:
    """Return the inventory of a model, which may live on meta tensors; no value of any tensor is read.

    What a layer reads, and whether it is called, comes from a forward on meta tensors with `example`: a dict of the
    forward's arguments by name, a tuple, or one tensor. A Hugging Face model needs none; any other is not run without.
    """
    first_names: dict[int, str] = {}
    other_names: dict[str, list[str]] = {}
    modules: dict[str, nn.Module] = {}
    for path, module in plain_modules(model.named_modules(remove_duplicate=False)).items():
        if (first := first_names.setdefault(id(module), path)) == path:
            modules[path] = module
        else:
            other_names.setdefault(first, []).append(path)
    infos: dict[str, ModuleInfo] = {}
    once = _Once()
    for path, module in modules.items():
        place = Place(path)
        parent: type = type(modules.get(place.holder))
        shape = _shape(module, plugins)
        if shape and place.leaf in weights_read_by(parent):
            shape = replace(shape, called=False)
        if shape and shape.quantizer is None:
            shape = once[shape]
        stacks = {} if shape else _stacks(path, module, plugins, once)
        infos[path] = ModuleInfo(
            path=path,
            class_name=type(module).__name__,
            bases=once[tuple(base.__name__ for base in type(module).__mro__[:-1])],
            shape=shape,
            device=once[_device(module)],
            parameters=(
                *_stored_weight(module, shape),
                *(
                    _parameter(name, parameter, once)
                    for name, parameter in module._parameters.items()
                    if parameter is not None
                    and not _stands_alone(stacks.get(place.inside(name)))
                    and not (shape and shape.quantizer and _is_of_weight(name))
                ),
            ),
            holds_modules=bool(module._modules),
            other_paths=tuple(other_names.get(path, ())),
            buffers=tuple(_parameter(name, buffer, once) for name, buffer in _stored_buffers(module)),
        )
        infos |= stacks
    flow = _dataflow(model, infos, example)
    if flow is not None:
        infos = {path: _seen(info, flow) for path, info in infos.items()}
    config = getattr(model, "config", None)
    output_path = _embedding_path(model, "get_output_embeddings", first_names)
    inventory = Inventory(
        model_class=type(model).__name__,
        modules=infos,
        input_path=_embedding_path(model, "get_input_embeddings", first_names),
        output_path=output_path,
        head_paths=(output_path,) if output_path else tuple(_outside_base(model, infos, first_names)),
        settings=_plain_settings(config) if hasattr(config, "to_dict") else {},
        kept=flow.kept if flow else None,
    )
    names = plugins.former_names(model, inventory.weights)
    return replace(inventory, former_paths=_former_paths(infos, names)) if names else inventory


def with_quantizers(inventory: Inventory, plan: Plan, plugins: Plugins) -> Inventory:
    """Return the inventory of a model that a plan was applied to, its weights quantized as the plan says."""
    changed: dict[str, ModuleInfo] = {}
    for entry in plan.entries:
        if entry.quant is None:
            continue
        module = inventory.modules[entry.path]
        if module.shape is None or module.shape.quantizer or not module.weight:
            continue
        quantizer = plugins.quantizer(entry.quant)
        others = tuple(parameter for parameter in module.parameters if parameter is not module.weight)
        held = entry.bytes.weight_after - sum(parameter.bytes for parameter in others)
        weight = replace(module.weight, dtype=quantizer.name, itemsize=1, stored_bytes=held)
        shape = replace(module.shape, quantizer=quantizer)
        changed[entry.path] = replace(module, shape=shape, parameters=(weight, *others))
    modules = {**inventory.modules, **changed} if changed else inventory.modules
    return replace(inventory, modules=modules, adapted=True)


class _Once(dict[Any, Any]):
    """Gives for every value the first that was equal: a model has thousands of layers, of a few shapes and dtypes."""

    def __missing__(self, value: Any) -> Any:
        self[value] = value
        return value


def _dataflow(model: nn.Module, infos: Mapping[str, ModuleInfo], example: Example) -> Dataflow | None:
    """Run the model on meta tensors. What is quantized is not looked into, nor experts if their code stops the run."""
    shapes = {path: info.shape for path, info in infos.items() if info.shape is not None}
    quantized: dict[str, int | None] = {path: shape.out_features for path, shape in shapes.items() if shape.quantizer}
    experts = {Place(path).holder: None for path, shape in shapes.items() if shape.stack > 1}
    examples = examples_of(model) if example is None else [example]
    return observed(model, examples, (quantized, quantized | experts) if experts else (quantized,))


def _seen(info: ModuleInfo, flow: Dataflow) -> ModuleInfo:
    if info.path in flow.uncalled and info.shape is not None:
        info = replace(info, shape=replace(info.shape, called=False))
    return replace(info, input=flow.inputs.get(info.path))


def _stored_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            yield name, buffer


def _parameter(name: str, parameter: Tensor, once: _Once) -> ParameterInfo:
    shape = once[tuple(parameter.shape)]
    return ParameterInfo(name, shape, name_of(parameter.dtype), parameter.element_size(), id(parameter))


def _stored_weight(module: nn.Module, shape: LayerShape | None) -> Iterator[ParameterInfo]:
    """Yield the weight of a layer that is quantized already."""
    if shape is not None and shape.quantizer is not None:
        size = (shape.out_features, shape.in_features)
        stored = round(shape.quantizer.bits_per_weight(size) * size[0] * size[1] / 8)
        yield ParameterInfo("weight", size, shape.quantizer.name, 1, id(module), stored)


def _is_of_weight(name: str) -> bool:
    """Whether a parameter of a quantized layer is its weight or, packed, a part of it."""
    return name == "weight" or name.startswith("weight_")


def _stacks(path: str, module: nn.Module, plugins: Plugins, once: _Once) -> dict[str, ModuleInfo]:
    """Return the parameters of a module that are targets of their own, by path."""
    found: dict[str, ModuleInfo] = {}
    for name, parameter in module._parameters.items():
        if parameter is None or parameter.ndim not in (2, 3):
            continue
        shape: LayerShape | None = plugins.describe_parameter(module, name)
        if shape is not None:
            own = (_parameter("", parameter, once),)
            full = Place(path).inside(name)
            found[full] = ModuleInfo(full, "Parameter", ("Parameter",), shape, str(parameter.device), own, False)
    return found


def _stands_alone(parameter: ModuleInfo | None) -> bool:
    """Whether a parameter is a target instead of its module's; one that only an outright name reaches is both."""
    return parameter is not None and parameter.shape is not None and not parameter.shape.outright


def _device(module: nn.Module) -> str:
    return str(next((parameter.device for parameter in module._parameters.values() if parameter is not None), ""))


def _shape(module: nn.Module, plugins: Plugins) -> LayerShape | None:
    # a module without parameters of its own is a container or an activation: nothing to adapt
    if not module._parameters:
        return None
    return plugins.describe_module(module)


def _embedding_path(model: nn.Module, getter: str, names: Mapping[int, str]) -> str | None:
    try:
        module = getattr(model, getter)()
    except (AttributeError, NotImplementedError):
        return None
    return names.get(id(module))


def _outside_base(model: nn.Module, infos: Mapping[str, ModuleInfo], names: Mapping[int, str]) -> Iterator[str]:
    """Yield the Linear-like layers that a transformers model adds to its base model, such as a classifier."""
    base = names.get(id(getattr(model, "base_model", model)), "")
    for path, module in infos.items():
        if base and module.shape is not None and module.shape.is_linear and not f"{path}.".startswith(f"{base}."):
            yield path


def _former_paths(paths: Iterable[str], names: FormerNames) -> Mapping[str, str]:
    # tables of names speak of weights, and what is at the end of a path may be cut off at a dot
    former = {path: names.former(f"{path}.weight").removesuffix(".weight") for path in paths if path}
    return {path: name for path, name in former.items() if name != path}


def _plain_settings(config: object) -> dict[str, object]:
    settings = config.to_dict()  # type: ignore[attr-defined]
    return {key: value for key, value in settings.items() if isinstance(value, int | float | str | bool)}
