"""State dicts that hold an adapter instead of its model: what any trainer saves and loads by a module's state.

What an adapted model has anyway is left out: frozen weights, and buffers that stay. All else of a module stays, what
trains beside the adapters too.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from lorakit.application.places import stored_buffers
from lorakit.application.sharding import is_sharded
from lorakit.application.state import adapted_in, state_of
from lorakit.application.statistics import moved_buffers
from lorakit.artifacts.adapter_state import State, packed, taken_out, unpack
from lorakit.artifacts.earlier_states import renamed, taken_as_file
from lorakit.artifacts.peft_names import adapter_tensors
from lorakit.errors import AdapterError
from lorakit.planning.place import Place


def to_adapters(holder: nn.Module, state_dict: State, prefix: str = "", *_: object) -> None:
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
        state_dict.update({f"{_at(prefix, path)}{name}": tensor for name, tensor in packed(model).items()})


def from_adapters(holder: nn.Module, state_dict: State, prefix: str = "", *_: object) -> None:
    """Take a state of adapters, or an adapter's file, into the adapters, and fill up the state with what is there.

    It is a hook for `register_load_state_dict_pre_hook`; any other state of these models is left as it is.
    Raises: AdapterError if it is not of these adapters, or of none that this is; nothing is changed then.
    """
    models, filled, lacking = adapted_in(holder), False, frozenset[str]()
    for path, model in models.items():
        at = _at(prefix, path)
        found = taken_out(state_dict, at) or (renamed(model, state_dict) if model is holder else {})
        if found:
            unpack(model, found)
            filled = True
    if not filled and holder in models.values():
        of_file = taken_as_file(holder, state_dict, prefix)
        if of_file is None:
            _check_any(holder, state_dict, prefix)
            return
        filled, lacking = True, frozenset(f"{prefix}{name}" for name, was_there in of_file.items() if not was_there)
    if filled:
        own = {id(tensor) for model in models.values() for _, tensor in _state_of(model)}
        for name, tensor in _state_of(holder):
            if id(tensor) in own and f"{prefix}{name}" not in lacking:
                state_dict.setdefault(f"{prefix}{name}", tensor)


def _at(prefix: str, path: str) -> str:
    return f"{prefix}{path}." if path else prefix


def _state_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what a module's state holds, by every name that it has."""
    for path, one in module.named_modules(remove_duplicate=False):
        for name, held in (*one._parameters.items(), *stored_buffers(one)):
            if held is not None:
                yield f"{_at('', path)}{name}", held


def _had_anyway(model: nn.Module) -> Iterator[Tensor]:
    """Yield what need not be kept of an adapted model: what its adapters hold, and what is as it was without them."""
    state = state_of(model)
    held = {one.inner for adapter in state.named.values() for one in adapter_tensors(model, adapter)}
    moved = {id(buffer) for buffer in moved_buffers(model, state).values()}
    for name, tensor in _state_of(model):
        is_own = tensor.requires_grad if isinstance(tensor, nn.Parameter) else id(tensor) in moved
        if name in held or not is_own:
            yield tensor


def _check_any(model: nn.Module, state_dict: State, prefix: str) -> None:
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
