"""Processes that hold a model without its values, which they get from the first: what loads it there alone does so.

Such are all but one a machine under accelerate's `cpu_ram_efficient_loading`. Their layers are made as in the first
process, of meta tensors, and what trains of zeros, so that every tensor has its place when the model is sharded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorakit.application.places import full_parameters
from lorakit.application.sharding import is_sharded_tensor
from lorakit.application.state import Adapted, adapted_state
from lorakit.errors import ModelError, TrainingError
from lorakit.hooks.manager import Plugins
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.planning.plan import Plan

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

REMEDY = (
    "load the model whole in every process (`cpu_ram_efficient_loading: false` in accelerate's config, or "
    "FSDP_CPU_RAM_EFFICIENT_LOADING=false)"
)


def waits(model: nn.Module) -> bool:
    """Return whether a model here waits for the values that the first of several processes has."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0:
        return False
    state = adapted_state(model)
    return (state is not None and state.waits) or any(parameter.is_meta for parameter in model.parameters())


def begin_waiting(model: nn.Module, plan: Plan, state: Adapted) -> None:
    """Have a model wait, and what trains in full lie somewhere: optimizers tell parameters apart by where they lie."""
    state.waits = True
    for entry in plan.entries:
        for parameter in full_parameters(model, entry).values():
            if parameter.is_meta:
                held = torch.zeros(parameter.shape, dtype=parameter.dtype)
                torch.utils.swap_tensors(parameter, nn.Parameter(held, requires_grad=parameter.requires_grad))


def check_arrived(model: nn.Module) -> None:
    """Raise TrainingError if a model is to run and waits still; accelerate's FSDP2 has given it its values by now."""
    state = adapted_state(model)
    if state is None or not state.waits:
        return
    if any(parameter.is_meta for parameter in model.parameters()) or not _accelerate_gives():
        raise TrainingError(
            f"this process holds no values of the {type(model).__name__}, which the first one gives to all as it is "
            f"sharded, by accelerate's FSDP2 or `lorakit.shard`: do that before the first step, or {REMEDY}"
        )
    state.waits = False


def _accelerate_gives() -> bool:
    accelerate: Any = sys.modules.get("accelerate.state")
    plugin = accelerate and accelerate.AcceleratorState._shared_state.get("fsdp_plugin")
    return bool(getattr(plugin, "cpu_ram_efficient_loading", False))


def check_can_wait(plan: Plan, plugins: Plugins, taken: Mapping[str, Any], observed: Iterable[str]) -> None:
    """Raise ModelError if a plan needs values where there are none: what it takes from weights, or sees go in."""
    for entry in plan.entries:
        call = entry.adapter.settings.init if entry.adapter is not None else None
        takes = call is not None and getattr(plugins.initializer(call), "changes_base", False)
        if takes or entry.path in taken:
            name = f"`{call.name}`" if call is not None else "the start of this adapter"
            raise ModelError(
                f"{name} takes a part from the weight of `{entry.path}`, which this process does not hold: {REMEDY}"
            )
    for name in observed:
        raise ModelError(f"{name} sees what goes into layers, and this process holds no weights to run: {REMEDY}")


def any_waits(model: nn.Module, mesh: DeviceMesh) -> bool:
    """Return whether any process waits for values of a model that this mesh is to hold; every one has to ask.

    Raises: ModelError if the mesh is of some processes alone, and one of them waits.
    """
    from torch import distributed

    if mesh.size() < (count := distributed.get_world_size()):
        if waits(model):
            raise ModelError(f"the first process gives its values to all {count}, and this mesh is of fewer: {REMEDY}")
        return False
    told: list[Any] = [None] * count
    distributed.all_gather_object(told, waits(model))
    return any(told)


def hand_out(module: nn.Module, device: torch.device) -> None:
    """Give every process what the first holds of a module and those in it, on this device.

    Each tensor stays the object that it is, in whatever refers to it; every process has to call this, in the same
    order.
    """
    for held, name, tensor in list(_tensors(module)):
        given = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        if not tensor.is_meta:
            given.copy_(tensor.detach())
        _receive(given)
        if not tensor.is_meta:
            tensor.detach().copy_(given)
        elif isinstance(tensor, nn.Parameter):
            torch.utils.swap_tensors(tensor, nn.Parameter(given, requires_grad=tensor.requires_grad))
        else:
            held[name] = given
    for layer in module.modules():
        if isinstance(layer, QuantizedLinear):
            # what multiplies was chosen for no device
            layer.dequantize_to(layer.dequantized_dtype)


def _tensors(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Yield each parameter and buffer that is not sharded yet, once, with where it is held."""
    seen: set[int] = set()
    for one in module.modules():
        for held in (one._parameters, one._buffers):
            for name, tensor in held.items():
                if tensor is not None and id(tensor) not in seen and not is_sharded_tensor(tensor):
                    seen.add(id(tensor))
                    yield held, name, tensor


def _receive(tensor: Tensor) -> None:
    from torch import distributed

    if tensor.numel():
        # gloo knows few dtypes, and bytes are bytes
        distributed.broadcast(tensor.view(-1).view(torch.uint8), src=0)
