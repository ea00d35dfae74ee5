"""The dtype that a model's weights are multiplied in: cast once, when a plan is applied, and given back bit for bit.

What an adapter adds keeps the dtype that its plan gives it, and a quantized weight stays as it is stored: its layer
dequantizes to another dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lorakit.application.state import Adapted, Cast, Kept
from lorakit.dtypes import short_name
from lorakit.errors import ModelError
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.planning.hardware import Compute

if TYPE_CHECKING:
    from lorakit.planning.plan import Plan


def check_compute(model: nn.Module, state: Adapted | None, plan: Plan) -> None:
    """Raise ModelError if a model cannot compute in what a plan says.

    It may compute in another dtype already that the plan asks to change, or hold weights beyond float16's range.
    """
    compute = plan.compute
    if compute is None:
        return
    if state is not None and state.cast is not None:
        now = state.cast.compute.dtype
        if compute.asked and compute.dtype != now:
            raise ModelError(
                f"this model computes in {short_name(now)} for the adapters that are on it, and the plan says "
                f"`step compute {short_name(compute.dtype)}`: leave that out, or load the model again"
            )
        return
    if compute.dtype == "float16" and compute.own != "float16":
        largest = torch.finfo(torch.float16).max
        for name, parameter in model.named_parameters():
            if (
                parameter.is_floating_point()
                and not parameter.is_meta
                and bool((parameter.isfinite() & (parameter.abs() > largest)).any())
            ):
                raise ModelError(f"`{name}` holds weights beyond the range of fp16: write `step compute fp32`")


def cast(model: nn.Module, state: Adapted, compute: Compute | None) -> None:
    """Hold all of a model that is not quantized, and is no adapter's own, in the dtype that it computes in.

    Does nothing where it does so already. `uncast` gives everything back.
    """
    if compute is None or state.cast is not None or (compute.dtype == compute.own and not compute.asked):
        return
    state.cast = Cast(compute)
    _cast(model, state.cast, _adapters_own(state))


def uncast(state: Adapted) -> None:
    """Give a model's own tensors the dtypes back that they had, and every value that was not trained since."""
    made, state.cast = state.cast, None
    if made is None:
        return
    for parameter, dtype, kept in made.parameters:
        parameter.data = _own(parameter.data, dtype, kept)
    for module, name, dtype in made.buffers:
        module._buffers[name] = module.get_buffer(name).to(dtype)
    for layer, dtype in made.layers:
        layer.dequantize_to(dtype)


@contextmanager
def own_dtypes(model: nn.Module, state: Adapted) -> Iterator[None]:
    """Let a model have its own dtypes inside the block, where its weights are read and it does not run."""
    made = state.cast
    if made is None:
        yield
        return
    # what trains has bits that its own dtype cannot hold
    trained = {parameter: parameter.data for parameter, *_ in made.parameters if parameter.requires_grad}
    uncast(state)
    try:
        yield
    finally:
        cast(model, state, made.compute)
        for parameter, values in trained.items():
            parameter.data = values


def own_value(state: Adapted, parameter: Tensor, value: Tensor) -> Tensor:
    """Return a value of the model's own parameter or buffer in its dtype; what adapters add stays as it is."""
    for cast_parameter, dtype, kept in state.cast.parameters if state.cast else ():
        if cast_parameter is parameter:
            return _own(value, dtype, kept)
    for module, name, dtype in state.cast.buffers if state.cast else ():
        if module._buffers.get(name) is parameter:
            return value.to(dtype)
    return value


def cast_more(state: Adapted, parameters: Iterable[nn.Parameter]) -> None:
    """Hold new parameters, which are in the model's own dtypes, in the dtype that it computes in."""
    if state.cast is not None:
        for parameter in parameters:
            parameter.data = parameter.data.to(state.cast.target(parameter.dtype))


def _cast(model: nn.Module, made: Cast, apart: set[int]) -> None:
    seen: set[int] = set(apart)
    for module in model.modules():
        for parameter in module._parameters.values():
            # a tied weight is one parameter in two places
            if parameter is None or id(parameter) in seen or not parameter.is_floating_point():
                continue
            seen.add(id(parameter))
            own, target = parameter.dtype, made.target(parameter.dtype)
            if own != target:
                made.parameters.append((parameter, own, _kept(parameter.data, target)))
                parameter.data = parameter.data.to(target)
        if isinstance(module, QuantizedLinear):
            made.layers.append((module, module.dequantized_dtype))
            module.dequantize_to(made.target(module.dequantized_dtype))
            continue
        for name, buffer in module._buffers.items():
            if buffer is None or id(buffer) in apart or not buffer.is_floating_point():
                continue
            if (target := made.target(buffer.dtype)) != buffer.dtype:
                made.buffers.append((module, name, buffer.dtype))
                module._buffers[name] = buffer.to(target)


def _adapters_own(state: Adapted) -> set[int]:
    """Return the tensors that adapters add to the model."""
    return {
        id(tensor)
        for adapter in state.named.values()
        for module in adapter.modules.values()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
        if not name.startswith("base_layer.")
    }


def _kept(values: Tensor, dtype: torch.dtype) -> Kept | None:
    """Return what another dtype of 16 bits rounds: few values, since only the smallest are. None of any other dtype."""
    if values.is_meta or values.dtype.itemsize != 2 or dtype.itemsize != 2:
        return None
    places = (values.to(dtype).to(values.dtype) != values).flatten().nonzero().flatten()
    return Kept(places, values.take(places)) if len(places) else None


def _own(values: Tensor, dtype: torch.dtype, kept: Kept | None) -> Tensor:
    result = values.to(dtype)
    if kept is not None:
        places, before = kept.places.to(values.device), kept.values.to(values.device)
        # what has been trained since is no longer what was rounded
        is_same = values.take(places) == before.to(values.dtype)
        result.put_(places[is_same], before[is_same])
    return result
