"""A model's adapters as tensors by name: what states and checkpoints hold of them, and how a model takes it up.

Of each adapter there are its tensors under the names that they have in its file, its plan as bytes, and what its start
took from the base weights. A state is told no folder: by the tensors alone an adapter with another alpha, or on another
base, would be taken for this one.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.application.sharding import fill
from lorakit.application.state import Adapted, NamedAdapter, state_of, unwrapped
from lorakit.artifacts.adapter_folder import gathered_value, starts_of
from lorakit.artifacts.peft_names import AdapterTensor, adapter_tensors
from lorakit.artifacts.reading import pairs_of
from lorakit.artifacts.resuming import check_same, check_start
from lorakit.artifacts.saved_plan import plan_to_save
from lorakit.errors import AdapterError, PlanError
from lorakit.planning.plan import Plan

State = MutableMapping[str, Any]
# each with the adapter's name behind it, and all but the first with the tensor's behind that
PLAN, TENSOR, START = "lorakit_plan.", "lorakit_adapter.", "lorakit_start."
# of an adapter as it was, which a view of the model compares with, and the model itself has no use for
EARLIER = "lorakit_earlier."
FIELDS = (PLAN, TENSOR, START, EARLIER)
WHERE = "this checkpoint"


def packed(
    model: nn.Module, names: Iterable[str] | None = None, *, gathered: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return adapters of a model, all of them or these, as one state of their own tensors.

    Of a sharded model every process has to call this, or the one that has what was `gathered` of it.
    Raises: ModelError while adapters are merged into the weights.
    """
    model, state = unwrapped(model), state_of(model)
    state.check_apart()
    found: dict[str, Tensor] = {}
    for name in state.named if names is None else names:
        adapter = state.get(name)
        plan = plan_to_save(adapter, state.plugins)
        for one in once(adapter_tensors(model, replace(adapter, plan=plan))):
            found[f"{TENSOR}{name}.{one.file_name}"] = gathered_value(one, gathered)
        found[f"{PLAN}{name}"] = plan_tensor(plan)
        found |= {f"{START}{name}.{key}": value for key, value in starts_of(adapter).items()}
    return found


def taken_out(state_dict: State, at: str = "") -> dict[str, Any]:
    """Take out of a state what is of the adapters of the model at a prefix, and return it without the prefix."""
    begins = tuple(f"{at}{field}" for field in FIELDS)
    names = [name for name in state_dict if name.startswith(begins)]
    return {name.removeprefix(at): state_dict.pop(name) for name in names}


def unpack(model: nn.Module, found: Mapping[str, Any]) -> None:
    """Copy what `packed` gave into the adapters of a model; those that it does not hold stay as they are.

    Raises: AdapterError naming the first thing in which plans differ, or what is missing; nothing is changed then.
    """
    state = state_of(model)
    saved = [name.removeprefix(PLAN) for name in found if name.startswith(PLAN)]
    _check_names(saved, state)
    pairs: list[tuple[Tensor, Tensor]] = []
    for name in saved:
        adapter = state.get(name)
        check_same(_plan(found[f"{PLAN}{name}"], name), adapter, WHERE)
        if started := below(found, f"{START}{name}."):
            check_start(pairs_of(started, WHERE), adapter, WHERE)
        tensors = below(found, f"{TENSOR}{name}.")
        wanted = once(adapter_tensors(model, adapter))
        if lacking := [one.file_name for one in wanted if one.file_name not in tensors]:
            raise AdapterError(f"{WHERE} lacks {len(lacking)} tensors of `{name}`, first {', '.join(lacking[:3])}")
        pairs += matched(wanted, tensors)
    with torch.no_grad():
        for tensor, value in pairs:
            fill(tensor, value)


def matched(wanted: Iterable[AdapterTensor], values: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Return tensors, each with the value for it, where there is one. Raises: AdapterError for one of another shape."""
    found = [(one, values[one.file_name]) for one in wanted if one.file_name in values]
    for one, value in found:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if shape != tuple(one.tensor.shape):
            raise AdapterError(
                f"{WHERE} is of another run: `{one.file_name}` is {shape}, and `{one.inner}` here "
                f"{tuple(one.tensor.shape)}; write the spec as it was then, or begin anew"
            )
    return [(one.tensor, value) for one, value in found]


def once(tensors: Iterable[AdapterTensor]) -> list[AdapterTensor]:
    """Return each tensor under the first of its names: ties and layers may share it."""
    found: dict[str, AdapterTensor] = {}
    for one in tensors:
        found.setdefault(one.inner, one)
    return list(found.values())


def plan_tensor(plan: Plan) -> Tensor:
    """Return a plan as bytes, which are its JSON compressed."""
    # bytearray: torch wants memory that may be written
    return torch.frombuffer(bytearray(zlib.compress(plan.to_json().encode())), dtype=torch.uint8)


def _plan(value: Any, name: str) -> Plan:
    try:
        return Plan.from_json(zlib.decompress(bytes(value.cpu().numpy())).decode())
    # UnicodeDecodeError is a ValueError
    except (AttributeError, PlanError, TypeError, ValueError, zlib.error) as error:
        raise AdapterError(f"{WHERE} holds no plan of `{name}` that can be read: {error}") from error


def _check_names(saved: list[str], state: Adapted) -> None:
    """Raise AdapterError if a state holds an adapter that a model has not, or lacks one that is in use."""
    named: list[NamedAdapter] = [*state.named.values()]
    if any(name not in state.named for name in saved) or not saved:
        raise AdapterError(
            f"{WHERE} holds the adapters {', '.join(saved) or 'of no plan'}, and the model has "
            f"{', '.join(one.name for one in named)}: put the same ones on it before"
        )
    if lacking := [one.name for one in state.used if one.name not in saved]:
        raise AdapterError(
            f"{WHERE} holds the adapters {', '.join(saved)}, and in use is {', '.join(lacking)} too: choose the same "
            "by `lorakit.adapters(model).use`"
        )


def below(found: Mapping[str, Any], begin: str) -> dict[str, Any]:
    """Return what has a name that begins so, without that."""
    return {name.removeprefix(begin): value for name, value in found.items() if name.startswith(begin)}
