"""How PEFT names tensors in an adapter file, and where the same tensors live in a model that lorakit adapted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from lorakit.application.places import adapter_path, full_tensors, other_ends
from lorakit.application.state import NamedAdapter
from lorakit.planning.plan import Plan, PlanEntry

ROOT, PREFIX = "base_model.", "base_model.model."


@dataclass(frozen=True, slots=True)
class AdapterTensor:
    """One tensor of an adapter folder: what the file and the model call it, and the shape that the plan gives it."""

    file_name: str
    inner: str
    tensor: Tensor
    shape: tuple[int, ...]


def adapter_tensors(model: nn.Module, adapter: NamedAdapter) -> Iterator[AdapterTensor]:
    """Yield everything that an adapter folder holds; what layers share comes once for each of them, under one name."""
    names = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    first: dict[int, str] = {}
    trained = {f"{one.path}.{name}" for one in adapter.plan.entries if one.train for name in full_tensors(model, one)}
    for entry in adapter.plan.entries:
        if entry.adapter is not None:
            module = adapter.modules[entry.path]
            inner, files = adapter_path(model, entry, module), file_names(adapter.plan, entry)
            for one in entry.adapter.parameters:
                tensor = module.get_parameter(one.name).data
                yield AdapterTensor(files[one.name], f"{inner}.{one.name}", tensor, one.shape)
        for name, held in full_tensors(model, entry).items():
            path = f"{entry.path}.{name}".rstrip(".")
            tensor = adapter.kept.get(first.setdefault(id(held), path), held.data)
            yield AdapterTensor(full_name(entry, name), names[id(held)], tensor, tuple(held.shape))
            for other in other_ends(model, held, path) if entry.train else ():
                # PEFT gives each end of a tie a copy of its own
                if other not in trained:
                    yield AdapterTensor(f"{PREFIX}{other}", names[id(held)], tensor, tuple(held.shape))


def full_name(entry: PlanEntry, name: str) -> str:
    """Return the name in the file of what an entry trains in full, by its name behind the entry's path."""
    between = "" if entry.train else "base_layer."
    return f"{PREFIX}{entry.path}.{between}{name}".rstrip(".")


def _wrapped(path: str, plan: Plan) -> str:
    """Return the path of a module in PEFT's model, where a module around it is wrapped for a parameter of its own."""
    holders = [one.path.rpartition(".")[0] for one in plan.entries if one.adapter and one.is_parameter]
    for holder in dict.fromkeys(holders):
        if holder and path.startswith(f"{holder}."):
            return f"{holder}{'.base_layer' * holders.count(holder)}{path.removeprefix(holder)}"
    return path


def file_names(plan: Plan, entry: PlanEntry) -> dict[str, str]:
    """Return the names in the file of an adapter's parameters, by their own.

    PEFT wraps a module once for each of its parameters that are adapted, the last one outermost, and names the
    adapters of the inner ones behind so many `base_layer`s.
    """
    assert entry.adapter is not None
    path = entry.path
    if entry.is_parameter:
        path = path.rpartition(".")[0]
        beside = [
            one.path for one in plan.entries if one.adapter and one.is_parameter and one.path.rpartition(".")[0] == path
        ]
        path += ".base_layer" * (len(beside) - 1 - beside.index(entry.path))
    else:
        path = _wrapped(path, plan)
    return {
        one.name: f"{ROOT}{one.file_name}" if one.shared else f"{PREFIX}{path}.{one.file_name}"
        for one in entry.adapter.parameters
    }
