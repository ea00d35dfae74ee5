"""How PEFT names tensors in an adapter file, and where the same tensors live in a model that lorakit adapted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from lorakit.application.places import adapter_path, full_tensors, other_ends
from lorakit.application.state import NamedAdapter
from lorakit.planning.place import Place
from lorakit.planning.plan import Plan, PlanEntry

ROOT, PREFIX = "base_model.", "base_model.model."
LORA = re.compile(r"(?P<path>.+)\.(?P<matrix>lora_[AB]\.weight|lora_embedding_[AB])")
FIRST = ("lora_A.weight", "lora_embedding_A")
# what stands between a path and what is the base layer's own, once for each adapter around it
BASE = ".base_layer"


@dataclass(frozen=True, slots=True)
class AdapterTensor:
    """One tensor of an adapter folder: what the file and the model call it, and the shape that the plan gives it."""

    file_name: str
    inner: str
    tensor: Tensor
    shape: tuple[int, ...]


def adapter_tensors(model: nn.Module, adapter: NamedAdapter) -> Iterator[AdapterTensor]:
    """Yield everything that an adapter folder holds; what layers share comes once for each of them, under one name."""
    inside = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    names = file_names(adapter.plan)
    first: dict[int, str] = {}
    trained = {
        Place(one.path).inside(name) for one in adapter.plan.entries if one.train for name in full_tensors(model, one)
    }
    for entry in adapter.plan.entries:
        if entry.adapter is not None:
            module = adapter.modules[entry.path]
            inner, files = adapter_path(model, entry, module), names(entry)
            for one in entry.adapter.parameters:
                tensor = module.get_parameter(one.name).data
                yield AdapterTensor(files[one.name], f"{inner}.{one.name}", tensor, one.shape)
        for name, held in full_tensors(model, entry).items():
            path = Place(entry.path).inside(name)
            tensor = adapter.kept.get(first.setdefault(id(held), path), held.data)
            yield AdapterTensor(full_name(entry, name), inside[id(held)], tensor, tuple(held.shape))
            for other in other_ends(model, held, path) if entry.train else ():
                # PEFT gives each end of a tie a copy of its own
                if other not in trained:
                    yield AdapterTensor(f"{PREFIX}{other}", inside[id(held)], tensor, tuple(held.shape))


def full_name(entry: PlanEntry, name: str) -> str:
    """Return the name in the file of what an entry holds whole, by its name behind the entry's path."""
    is_bare = entry.train or entry.adapter is None
    place = Place(entry.path) if is_bare else Place(f"{entry.path}.base_layer")
    return f"{PREFIX}{place.inside(name)}"


def _wrapped(path: str, wraps: Mapping[str, int]) -> str:
    """Return the path of a module in PEFT's model, where one around it is wrapped as often as `wraps` says."""
    holder = path
    while holder := Place(holder).holder:
        if holder in wraps:
            return f"{holder}{'.base_layer' * wraps[holder]}{path.removeprefix(holder)}"
    return path


def file_names(plan: Plan) -> Callable[[PlanEntry], dict[str, str]]:
    """Return what gives the names in the file of an entry's adapter's parameters, by their own.

    PEFT wraps a module once for each of its parameters that are adapted, the last one outermost, and names the
    adapters of the inner ones behind so many `base_layer`s.
    """
    depths: dict[str, int] = {}
    beside: dict[str, int] = {}
    for entry in reversed(plan.entries):
        if entry.adapter is not None and entry.is_parameter:
            holder = Place.of(entry).holder
            depths[entry.path] = beside.get(holder, 0)
            beside[holder] = depths[entry.path] + 1

    def names(entry: PlanEntry) -> dict[str, str]:
        assert entry.adapter is not None
        wrapped = _wrapped(entry.path, beside)
        path = Place.of(entry).holder + BASE * depths[entry.path] if entry.is_parameter else wrapped
        return {
            one.name: f"{ROOT}{one.file_name}" if one.shared else f"{PREFIX}{path}.{one.file_name}"
            for one in entry.adapter.parameters
        }

    return names
