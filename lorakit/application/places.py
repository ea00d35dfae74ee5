"""Where layers, their adapters and what those own stand in an adapted model."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils import parametrize

from lorakit.application.dispatch import move_hook
from lorakit.errors import ModelError
from lorakit.planning.place import Place
from lorakit.planning.plan import PlanEntry
from lorakit.planning.wrappers import WRAPPERS, plain_path

PARAMETRIZATIONS = "parametrizations"


def module_at(model: nn.Module, path: str) -> nn.Module:
    """Return the module at a plan's path: inside whatever torch put around it."""
    module = model.get_submodule(path)
    while (name := next((one for one in WRAPPERS if one in module._modules), None)) is not None:
        module = module.get_submodule(name)
    return module


def holder_of(model: nn.Module, entry: PlanEntry) -> tuple[nn.Module, str]:
    """Return the module that holds the parameter which an entry names, and the parameter's name in it."""
    place = Place.of(entry)
    return module_at(model, place.module), place.parameter


def base_layer_of(module: nn.Module) -> nn.Module:
    """Return the layer under all of its adapters; the module itself if it has none."""
    while isinstance(inner := module._modules.get("base_layer"), nn.Module):
        module = inner
    return module


def adapters_on(module: nn.Module) -> list[nn.Module]:
    """Return the adapters around a base layer, the innermost first."""
    found = []
    while isinstance(inner := module._modules.get("base_layer"), nn.Module):
        found.append(module)
        module = inner
    return found[::-1]


def base_of(model: nn.Module, entry: PlanEntry) -> nn.Module | Tensor:
    """Return what lies under the adapters at an entry's path: a layer, or a parameter."""
    if not entry.is_parameter:
        return base_layer_of(module_at(model, entry.path))
    holder, name = holder_of(model, entry)
    return bare_parameter(holder, name)


def bare_parameter(holder: nn.Module, name: str) -> nn.Parameter:
    """Return the parameter itself, whatever adapters are on it."""
    if parametrize.is_parametrized(holder, name):
        return holder.get_parameter(f"{PARAMETRIZATIONS}.{name}.original")
    return holder.get_parameter(name)


def adapter_path(model: nn.Module, entry: PlanEntry, adapter: nn.Module) -> str:
    """Return the path of an adapter in a model: a later adapter of the same layer stands around it.

    Raises: ModelError if it is there no more.
    """
    try:
        if entry.is_parameter:
            holder, name = holder_of(model, entry)
            index = list(holder.get_submodule(f"{PARAMETRIZATIONS}.{name}").children()).index(adapter)
            return Place(Place.of(entry).module).inside(f"{PARAMETRIZATIONS}.{name}.{index}")
        path, module = entry.path, module_at(model, entry.path)
        while module is not adapter:
            path, module = f"{path}.base_layer", module.get_submodule("base_layer")
        return path
    except (AttributeError, ValueError) as error:
        raise ModelError(
            f"`{entry.path}` of this model holds its adapter no more: the layer was replaced or taken out; change a "
            "model before `lorakit.apply`"
        ) from error


def own_parameters(adapter: nn.Module, entry: PlanEntry) -> dict[str, nn.Parameter]:
    """Return what an adapter adds to its base layer, by the names of the entry's table."""
    assert entry.adapter is not None
    held = adapter._parameters
    return {one.name: held[one.name] for one in entry.adapter.parameters}  # type: ignore[misc]


def full_parameters(model: nn.Module, entry: PlanEntry) -> dict[str, nn.Parameter]:
    """Return what an entry trains in full, by name behind the entry's path: by `train`, or biases by `bias adapter`."""
    if entry.train:
        return _own_parameters(model, entry)
    if entry.adapter is not None and entry.adapter.bias_parameters:
        return {"bias": base_layer_of(module_at(model, entry.path)).get_parameter("bias")}
    return {}


def full_tensors(model: nn.Module, entry: PlanEntry) -> dict[str, Tensor]:
    """Return what an entry trains in full or carries, and the buffers beside it that a checkpoint holds.

    Such are the means of a batch norm.
    """
    if not entry.is_whole:
        return dict(full_parameters(model, entry))
    found: dict[str, Tensor] = dict(_own_parameters(model, entry))
    base = base_of(model, entry)
    return found | dict(stored_buffers(base)) if isinstance(base, nn.Module) else found


def _own_parameters(model: nn.Module, entry: PlanEntry) -> dict[str, nn.Parameter]:
    base = base_of(model, entry)
    return {"": base} if isinstance(base, nn.Parameter) else dict(base.named_parameters(recurse=False))  # type: ignore[union-attr]


def stored_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the buffers of a module's own that its state holds."""
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            yield name, buffer


def other_ends(model: nn.Module, tensor: Tensor, path: str) -> list[str]:
    """Return the other names of a tied tensor, as they are without adapters and wrappers."""
    every = model.named_parameters(remove_duplicate=False)
    names = dict.fromkeys(plain_path(name).replace(".base_layer", "") for name, held in every if held is tensor)
    return [name for name in names if name != path]


def parents_of(model: nn.Module) -> dict[nn.Module, list[tuple[nn.Module, str]]]:
    """Return, for every module, each parent that holds it and the name it has there."""
    found: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                found.setdefault(child, []).append((parent, name))
    return found


def replace_modules(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    """Put modules into the places of others, wherever the model holds those."""
    for original, replacement in replacements.items():
        if replacement is not original:
            move_hook(original, replacement)
    # the modules as they are now: what takes a place may hold what had it
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is None or (taking := replacements.get(child, child)) is child:
                continue
            setattr(parent, name, taking)
            if name == "_orig_mod":
                # torch.compile's wrapper calls what it was made for, until it is told
                parent._initialize()  # type: ignore[operator]


def adapt_parameter(holder: nn.Module, name: str, adapter: nn.Module) -> None:
    """Put an adapter on a parameter, over those that are there already."""
    # the order of a module's parameters tells how its stacks follow each other, and torch forgets it
    adapter.beside = tuple(holder._parameters)  # type: ignore[assignment]
    parametrize.register_parametrization(holder, name, adapter, unsafe=True)


def free_parameter(holder: nn.Module, name: str) -> None:
    """Take every adapter off a parameter, which gets its old place among the others."""
    first = holder.get_submodule(f"{PARAMETRIZATIONS}.{name}.0")
    order = {beside: index for index, beside in enumerate(first.beside)}  # type: ignore[arg-type]
    parametrize.remove_parametrizations(holder, name, leave_parametrized=False)
    ordered = sorted(holder._parameters.items(), key=lambda item: order.get(item[0], -1))
    holder._parameters.clear()
    holder._parameters.update(ordered)


def adapters_of_parameter(holder: nn.Module, name: str) -> Iterator[nn.Module]:
    """Yield the adapters on a parameter, the innermost first."""
    if parametrize.is_parametrized(holder, name):
        yield from holder.get_submodule(f"{PARAMETRIZATIONS}.{name}").children()
