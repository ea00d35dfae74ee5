"""Which adapters of a model are in use, and how far: nothing is loaded or built, and no adapter's tensor changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lorakit.application.places import full_parameters, full_tensors, own_parameters
from lorakit.application.resting import give_back
from lorakit.application.sharding import fill, whole
from lorakit.application.state import Adapted, NamedAdapter
from lorakit.application.statistics import hold_still
from lorakit.errors import ModelError
from lorakit.layers.strength import RowsError, Strength
from lorakit.planning.place import Place


def use(model: nn.Module, state: Adapted, strengths: Mapping[str, float]) -> None:
    """Put these adapters in use, each by its factor, and all others out of it; those in use train, the others do not.

    Raises: ModelError for an unknown name or factors that cannot be; the model is unchanged then.
    """
    if any(isinstance(adapter.strength, Tensor) for adapter in state.used):
        raise ModelError("rows have adapters of their own inside this block: leave it before choosing others")
    _switch(model, state, {state.get(name).name: float(strength) for name, strength in strengths.items()})
    for adapter in state.named.values():
        for entry, module in adapter.entries():
            assert entry.adapter is not None
            own = own_parameters(module, entry)
            for one in entry.adapter.parameters:
                own[one.name].requires_grad_(adapter.is_used and one.trains)
        _require_gradients(model, adapter, False)
    for adapter in state.used:
        _require_gradients(model, adapter, True)
    hold_still(model, state)


def _require_gradients(model: nn.Module, adapter: NamedAdapter, trains: bool) -> None:
    for entry in adapter.plan.entries:
        for parameter in full_parameters(model, entry).values():
            parameter.requires_grad_(trains)


@contextmanager
def disabled(model: nn.Module, state: Adapted) -> Iterator[None]:
    """Let the base model alone answer inside the block."""
    before = {adapter.name: adapter.strength for adapter in state.used}
    _switch(model, state, {})
    try:
        yield
    finally:
        _switch(model, state, before)


@contextmanager
def rows(model: nn.Module, state: Adapted, names: Sequence[str | None]) -> Iterator[None]:
    """Let every row of the batches inside the block have the adapter that `names` gives it, or none.

    Raises: ModelError for an unknown name, and naming a module that does not see the rows apart.
    """
    wanted = {name: state.get(name) for name in names if name is not None}
    for adapter in wanted.values():
        _check_by_row(adapter)
    before = {adapter.name: adapter.strength for adapter in state.used}
    strengths = {name: torch.tensor([float(row == name) for row in names]) for name in wanted}
    _switch(model, state, strengths)
    try:
        yield
    except RowsError as error:
        paths = (path for path, module in model.named_modules() if module is error.layer)
        raise ModelError(
            f"`{next(paths, '?')}` cannot have an adapter for each row: {error}; leave it out of the adapter"
        ) from error
    finally:
        _switch(model, state, before)


def _check_by_row(adapter: NamedAdapter) -> None:
    for entry in adapter.plan.entries:
        if entry.is_whole or (entry.adapter and entry.adapter.bias_parameters):
            raise ModelError(
                f"`{adapter.name}` has `{entry.path}` in full, which serves all rows at once: "
                "use adapters by row without `train` and `bias adapter`"
            )
        if entry.adapter and entry.shape and (entry.is_parameter or not entry.shape.called):
            raise ModelError(
                f"`{adapter.name}` adapts `{entry.path}`, whose weight serves all rows at once; "
                "leave it out of adapters that are used by row"
            )
        if entry.adapter and ".experts." in f".{entry.path}.":
            raise ModelError(
                f"`{adapter.name}` adapts `{entry.path}`, an expert, where tokens of several rows meet; "
                "leave it out of adapters that are used by row"
            )


def _switch(model: nn.Module, state: Adapted, strengths: Mapping[str, Strength]) -> None:
    """Give each adapter its strength, 0 where none is given, and let the parameters that it trained in full stand."""
    state.check_apart()
    standing: dict[str, str] = {}
    for name, strength in strengths.items():
        adapter = state.get(name)
        if isinstance(strength, float) and strength == 0.0:
            continue
        for path in full_values(model, adapter):
            if path in standing:
                raise ModelError(f"`{standing[path]}` and `{name}` both trained `{path}` in full: use one of them")
            if not isinstance(strength, Tensor) and strength != 1.0:
                raise ModelError(f"`{name}` trained `{path}` in full: use it with the factor 1, not {strength:g}")
            standing[path] = name
    for adapter in state.named.values():
        strength = strengths.get(adapter.name, 0.0)
        if isinstance(strength, Tensor) or strength != 1.0:
            give_back(model, adapter, state.plugins)
    _stand(model, state, standing)
    for adapter in state.named.values():
        adapter.strength = strengths.get(adapter.name, 0.0)
        adapter.answer(adapter.strength)


def _stand(model: nn.Module, state: Adapted, standing: Mapping[str, str]) -> None:
    """Let the values of the adapters named in `standing` stand in the model, and the base's own everywhere else."""
    live = {
        path: parameter for adapter in state.named.values() for path, parameter in full_values(model, adapter).items()
    }
    with torch.no_grad():
        for path, parameter in live.items():
            now, then = state.standing.get(path), standing.get(path)
            if now == then:
                continue
            if now is not None:
                state.named[now].kept[path] = whole(parameter.detach()).to("cpu", copy=True)
            # an adapter that never stood starts from the base's own values
            kept = state.named[then].kept.pop(path, None) if then is not None else None
            # a backward pass on its way may have saved the parameter, and finds its values again by then
            fill(parameter.data, kept if kept is not None else state.base[path])
    state.standing = dict(standing)


def full_values(model: nn.Module, adapter: NamedAdapter) -> dict[str, Tensor]:
    """Return what an adapter trains in full, and the buffers beside it, by path in the model without adapters."""
    first: dict[int, tuple[str, Tensor]] = {}
    for entry in adapter.plan.entries:
        for name, tensor in full_tensors(model, entry).items():
            # both ends of a tie are one tensor, under the name of the first
            first.setdefault(id(tensor), (Place(entry.path).inside(name), tensor))
    return dict(first.values())


def remember_base(model: nn.Module, state: Adapted, adapter: NamedAdapter) -> None:
    """Keep a copy of the base's own values of what a new adapter will train in full, unless one is there."""
    for path, parameter in full_values(model, adapter).items():
        if path not in state.base:
            state.base[path] = whole(parameter.detach()).to("cpu", copy=True)
