"""The adapters in use as one state dict, for a trainer that saves and loads nothing else.

It holds their tensors by the names in their files, and their plans as bytes: `load_state_dict` is told no folder, and
by the tensors alone an adapter with another alpha, or on another base, would be taken for this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lorakit.application.state import DEFAULT, NamedAdapter, adapter_of, state_of
from lorakit.artifacts.adapter_folder import Written
from lorakit.artifacts.peft_names import PREFIX, AdapterTensor, adapter_tensors
from lorakit.artifacts.reading import pairs_of
from lorakit.artifacts.resuming import check_same, check_start
from lorakit.errors import AdapterError, PlanError
from lorakit.planning.place import Place
from lorakit.planning.plan import Plan

PLAN, START = "lorakit_plan", "lorakit_start"
WHERE = "this checkpoint"
# of loads that go on: what the names in a model begin with, and those that its adapters get from a checkpoint
_given: WeakKeyDictionary[nn.Module, tuple[str, frozenset[str]]] = WeakKeyDictionary()


def places(names: Iterable[str]) -> dict[str, str]:
    """Return the folder, within another, that each of these adapters is saved in: PEFT's way, "" for itself.

    One alone is saved in the folder itself; of several that is `default`.
    """
    names = list(names)
    return {name: "" if name == DEFAULT or len(names) == 1 else name for name in names}


def state_dict_of(written: Mapping[str, Written]) -> dict[str, Tensor]:
    """Return one state dict of what was written of adapters, by the folder of each."""
    found: dict[str, Tensor] = {}
    for place, one in written.items():
        found |= {_key(place, name): tensor for name, tensor in one.tensors.items()}
        # bytearray: torch wants memory that may be written
        found[_own_key(place, PLAN)] = torch.frombuffer(bytearray(one.plan.to_json().encode()), dtype=torch.uint8)
        found |= {_own_key(place, f"{START}/{name}"): tensor for name, tensor in one.started.items()}
    return found


def _key(place: str, name: str) -> str:
    # whatever stands around a model in PEFT's way hands on what begins so
    return name if not place and name.startswith(PREFIX) else _own_key(place, name)


def _own_key(place: str, name: str) -> str:
    return f"{PREFIX}{place}/{name}"


@dataclass(frozen=True, eq=False, slots=True)
class _Saved:
    """What a checkpoint says of an adapter beside its tensors: its plan as bytes, and what its start took."""

    plan: Tensor
    started: Mapping[str, Tensor]


def _take_saved(state_dict: MutableMapping[str, Any]) -> dict[str, _Saved]:
    """Take out of a state dict what is said of its adapters, by their folders."""
    plans: dict[str, Tensor] = {}
    started: dict[str, dict[str, Tensor]] = {}
    for key in [key for key in state_dict if key.startswith(PREFIX)]:
        place, _, name = key.removeprefix(PREFIX).partition("/")
        if name == PLAN:
            plans[place] = state_dict.pop(key)
        elif name.startswith(f"{START}/"):
            started.setdefault(place, {})[name.removeprefix(f"{START}/")] = state_dict.pop(key)
    return {place: _Saved(plan, started.get(place, {})) for place, plan in plans.items()}


def stand_by(model: nn.Module) -> None:
    """Have a model's `load_state_dict` take such a state dict, or an adapter's file, for the adapters in use."""
    let_go(model)
    model.register_load_state_dict_pre_hook(_before)
    model.register_load_state_dict_post_hook(_after)


def let_go(model: nn.Module) -> None:
    """Undo `stand_by`."""
    for hooks in (model._load_state_dict_pre_hooks, model._load_state_dict_post_hooks):
        for key, hook in list(hooks.items()):
            # torch wraps a hook that is called before
            if getattr(hook, "hook", hook) in (_before, _after):
                del hooks[key]


def _before(model: nn.Module, state_dict: dict[str, Any], prefix: str = "", *_: Any) -> None:
    """Give tensors the names that they have in the model, which others may hold at `prefix`.

    Raises: AdapterError where they are not those of the adapters in use; nothing is changed then.
    """
    _given.pop(model, None)
    saved = _take_saved(state_dict)
    wanted = _planned(model, saved) if saved else _unplanned(model, state_dict, prefix)
    if not wanted:
        _check_any(model, state_dict, prefix)
        return
    _check_shapes(wanted, state_dict, complete=bool(saved))
    values = {key: state_dict.pop(key) for key in wanted if key in state_dict}
    # what layers share has a name in each of them
    state_dict.update({prefix + one.inner: value for key, value in values.items() for one in wanted[key]})
    _given[model] = prefix, frozenset(prefix + one.inner for ones in wanted.values() for one in ones)


def _after(model: nn.Module, keys: Any) -> None:
    """Take what a checkpoint leaves out on purpose off the list of what is missing."""
    if model in _given:
        prefix, names = _given.pop(model)
        keys.missing_keys[:] = [name for name in keys.missing_keys if name in names or not name.startswith(prefix)]


def _planned(model: nn.Module, saved: Mapping[str, _Saved]) -> dict[str, list[AdapterTensor]]:
    """Return what the adapters in use take from a checkpoint, by name, once each was found to be of its plan there."""
    state = state_of(model)
    used = {place: state.get(name) for name, place in places(one.name for one in state.used).items()}
    if used.keys() != saved.keys():
        raise AdapterError(
            f"{WHERE} holds {_names(saved)}, and in use {'are' if len(used) > 1 else 'is'} "
            f"{', '.join(f'`{one.name}`' for one in used.values()) or 'none'}: choose the same by "
            "`lorakit.adapters(model).use`"
        )
    wanted: dict[str, list[AdapterTensor]] = {}
    for place, adapter in used.items():
        try:
            plan = Plan.from_json(bytes(saved[place].plan.cpu().numpy()).decode())
        # UnicodeDecodeError is a ValueError
        except (PlanError, ValueError, TypeError) as error:
            raise AdapterError(f"{WHERE} holds no plan of `{adapter.name}` that can be read: {error}") from error
        check_same(plan, adapter, WHERE)
        check_start(pairs_of(saved[place].started, WHERE), adapter, WHERE)
        _collect(model, adapter, place, wanted)
    return wanted


def _names(saved: Iterable[str]) -> str:
    return ", ".join(f"`{place}`" if place else "one that stands alone, or `default`" for place in sorted(saved))


def _unplanned(model: nn.Module, state_dict: Mapping[str, Any], prefix: str) -> dict[str, list[AdapterTensor]]:
    """Return what the adapter in use takes from an adapter's file, by name; nothing where there is nothing of one."""
    found: dict[str, list[AdapterTensor]] = {}
    for adapter in state_of(model).used:
        wanted: dict[str, list[AdapterTensor]] = {}
        _collect(model, adapter, "", wanted)
        found |= {key: ones for key, ones in wanted.items() if key in state_dict and key != prefix + ones[0].inner}
        if found:
            # which of several a file is of, nothing tells
            adapter_of(model)
            return wanted
    return {}


def _collect(
    model: nn.Module, adapter: NamedAdapter, place: str, wanted: MutableMapping[str, list[AdapterTensor]]
) -> None:
    for one in adapter_tensors(model, adapter):
        wanted.setdefault(_key(place, one.file_name), []).append(one)


def _check_shapes(wanted: Mapping[str, list[AdapterTensor]], state_dict: Mapping[str, Any], *, complete: bool) -> None:
    lacking = [key for key in wanted if key not in state_dict]
    if complete and lacking:
        raise AdapterError(f"{WHERE} lacks {len(lacking)} tensors of its adapters, first {', '.join(lacking[:3])}")
    for key, ones in wanted.items():
        if key in state_dict and tuple(state_dict[key].shape) != tuple(ones[0].tensor.shape):
            raise AdapterError(
                f"{WHERE} is of another run: `{key}` is {tuple(state_dict[key].shape)}, and `{ones[0].inner}` here "
                f"{tuple(ones[0].tensor.shape)}; write the spec as it was then, or begin anew"
            )


def _check_any(model: nn.Module, state_dict: Mapping[str, Any], prefix: str) -> None:
    """Raise AdapterError if what is loaded is of a model without these adapters, or of none that this is."""
    adapters = state_of(model).named.values()
    held = {prefix + one.inner for adapter in adapters for one in adapter_tensors(model, adapter)}
    if not state_dict or not held.isdisjoint(state_dict):
        return
    bare = {prefix + Place(entry.path).inside("weight") for adapter in adapters for entry, _ in adapter.entries()}
    base = next((key for key in state_dict if key in bare), None)
    if base is not None:
        raise AdapterError(
            f"what is loaded is of a model without adapters: it holds `{base}`, and nothing of "
            f"{', '.join(f'`{adapter.name}`' for adapter in adapters)}; load it before `lorakit.apply`"
        )
    names = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    if {prefix + name for name, _ in names}.isdisjoint(state_dict):
        raise AdapterError(
            f"nothing that is loaded is this model's: it holds {len(state_dict)} other names, first "
            f"`{next(iter(state_dict))}`"
        )
