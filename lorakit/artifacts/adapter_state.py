"""State dicts that hold an adapter instead of its model: what any trainer saves and loads by a module's state.

Of each adapted model in a module there are the tensors of its adapters, under the names that their files have, and the
plan of each. What an adapted model has anyway is left out: frozen weights, and buffers that stay. All else of the
module stays, what trains beside the adapters too.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.application.places import stored_buffers
from lorakit.application.sharding import fill, is_sharded
from lorakit.application.state import NamedAdapter, adapted_in, state_of
from lorakit.application.statistics import moved_buffers
from lorakit.artifacts.peft_names import AdapterTensor, adapter_tensors
from lorakit.artifacts.resuming import first_difference
from lorakit.artifacts.saved_plan import plan_to_save
from lorakit.errors import AdapterError, PlanError
from lorakit.planning.plan import Plan

# each with the adapter's name behind it, and that with the tensor's
PLAN, TENSOR = "lorakit_plan.", "lorakit_adapter."

State = MutableMapping[str, Any]


def to_adapters(holder: nn.Module, state_dict: State, prefix: str = "", *_: Any) -> None:
    """Leave of a module's state, in place, what its adapters hold and what is not in the adapted models.

    It is a hook for `register_state_dict_post_hook`. What is sharded is left to whoever gathers it.
    Raises: ModelError while adapters are merged into the weights.
    """
    if is_sharded(holder):
        return
    models = adapted_in(holder)
    had_anyway = {id(tensor) for model in models.values() for tensor in _had_anyway(model)}
    for name, tensor in _state_of(holder):
        if id(tensor) in had_anyway:
            state_dict.pop(f"{prefix}{name}", None)
    for path, model in models.items():
        at = f"{prefix}{path}." if path else prefix
        state_dict.update({f"{at}{name}": tensor for name, tensor in _packed(model).items()})


def from_adapters(holder: nn.Module, state_dict: State, prefix: str = "", *_: Any) -> None:
    """Take what `to_adapters` made into the adapters, and fill up the state with what the module has.

    It is a hook for `register_load_state_dict_pre_hook`; any other state is left as it is.
    Raises: AdapterError naming the first thing in which plans differ, or what is missing.
    """
    models = adapted_in(holder)
    filled = False
    for path, model in models.items():
        at = f"{prefix}{path}." if path else prefix
        names = [name for name in state_dict if name.startswith((f"{at}{PLAN}", f"{at}{TENSOR}"))]
        if names:
            _unpack(model, {name.removeprefix(at): state_dict.pop(name) for name in names})
            filled = True
    if filled:
        own = {id(tensor) for model in models.values() for _, tensor in _state_of(model)}
        for name, tensor in _state_of(holder):
            if id(tensor) in own:
                state_dict.setdefault(f"{prefix}{name}", tensor)


def _state_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what a module's state holds, by every name that it has."""
    for path, one in module.named_modules(remove_duplicate=False):
        at = f"{path}." if path else ""
        for name, held in (*one._parameters.items(), *stored_buffers(one)):
            if held is not None:
                yield f"{at}{name}", held


def _had_anyway(model: nn.Module) -> Iterator[Tensor]:
    """Yield what need not be kept of an adapted model: what its adapters hold, and what is as it was without them."""
    state = state_of(model)
    held = {one.inner for adapter in state.named.values() for one in adapter_tensors(model, adapter)}
    moved = {id(buffer) for buffer in moved_buffers(model, state).values()}
    for name, tensor in _state_of(model):
        is_own = tensor.requires_grad if isinstance(tensor, nn.Parameter) else id(tensor) in moved
        if name in held or not is_own:
            yield tensor


def _packed(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of each adapter of a model, and its plan as bytes, which are its JSON compressed."""
    state = state_of(model)
    state.check_apart()
    packed: dict[str, Tensor] = {}
    for name, adapter in state.named.items():
        plan = plan_to_save(adapter, state.plugins)
        for file_name, one in _tensors(model, replace(adapter, plan=plan)).items():
            packed[f"{TENSOR}{name}.{file_name}"] = one.tensor
        packed[f"{PLAN}{name}"] = torch.frombuffer(bytearray(zlib.compress(plan.to_json().encode())), dtype=torch.uint8)
    return packed


def _unpack(model: nn.Module, packed: Mapping[str, Any]) -> None:
    state = state_of(model)
    saved = [name.removeprefix(PLAN) for name in packed if name.startswith(PLAN)]
    if set(saved) != set(state.named):
        raise AdapterError(
            f"this state holds the adapters {', '.join(saved) or 'of no plan'}, and the model has "
            f"{', '.join(state.named)}: put the same ones on it before"
        )
    found: list[tuple[Tensor, Tensor]] = []
    for name, adapter in state.named.items():
        if different := first_difference(_plan(packed[f"{PLAN}{name}"]), adapter.plan):
            raise AdapterError(
                f"this state is of another run than `{name}`: {different}; write the spec as it was then, or begin anew"
            )
        for file_name, one in _tensors(model, adapter).items():
            value = packed.get(f"{TENSOR}{name}.{file_name}")
            if not isinstance(value, Tensor) or value.shape != one.tensor.shape:
                shape = tuple(one.tensor.shape)
                raise AdapterError(f"this state of `{name}` is damaged: it has no `{file_name}` {shape}")
            found.append((one.tensor, value))
    with torch.no_grad():
        for tensor, value in found:
            fill(tensor, value)


def _plan(packed: Tensor) -> Plan:
    try:
        return Plan.from_json(zlib.decompress(bytes(packed.tolist())).decode())
    except (PlanError, ValueError, zlib.error) as error:
        raise AdapterError(f"this state holds no plan that can be read: {error}") from error


def _tensors(model: nn.Module, adapter: NamedAdapter) -> dict[str, AdapterTensor]:
    """Return an adapter's tensors by their names in a file, each once: ties and layers may share them."""
    once: dict[str, AdapterTensor] = {}
    for one in adapter_tensors(model, adapter):
        once.setdefault(one.inner, one)
    return {one.file_name: one for one in once.values()}
