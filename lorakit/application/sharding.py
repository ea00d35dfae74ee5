"""Models whose parameters are spread over processes by `fully_shard`: what needs whole tensors gathers them here.

Gathering is collective: every process of the mesh has to do it, in the same order. One of them writes files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

# models that DistributedDataParallel trained: it leaves no trace on them
_replicas: WeakSet[nn.Module] = WeakSet()


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all of its parts; collective where it is sharded."""
    return tensor.full_tensor() if is_sharded_tensor(tensor) else tensor  # type: ignore[attr-defined]


def fill(tensor: Tensor, value: Tensor) -> None:
    """Copy a whole value into a tensor, which may be sharded: then each process gets its part of the first one's."""
    if is_sharded_tensor(tensor):
        from torch.distributed.tensor import distribute_tensor

        held: Any = tensor
        value = distribute_tensor(value.to(tensor.device, tensor.dtype), held.device_mesh, held.placements)
    tensor.copy_(value)


def as_shard(tensor: Tensor) -> Tensor:
    """Return a tensor spread over all processes, on its first dimension; itself where there is one process alone.

    No process learns anything of another: each holds its own part.
    """
    if not _is_distributed():
        return tensor
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    count, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    mesh = init_device_mesh(tensor.device.type, (count,))
    part = tensor.tensor_split(count)[rank]
    made: Tensor = DTensor.from_local(
        part, mesh, (Shard(0),), run_check=False, shape=tensor.shape, stride=tensor.stride()
    )
    return made


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Let a module and those in it hold whole parameters inside the block, to be read; collective if any is sharded."""
    replaced: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for one in module.modules():
            for name, parameter in one._parameters.items():
                if parameter is not None and is_sharded_tensor(parameter):
                    replaced.append((one._parameters, name, parameter))
        for held, name, part in replaced:
            held[name] = nn.Parameter(whole(part.detach()), requires_grad=False)
        yield
    finally:
        for held, name, part in replaced:
            held[name] = part


def writes(model: nn.Module) -> bool:
    """Return whether this process writes the files of a model: the first one, where others hold the model too."""
    return not (is_sharded(model) or is_replica(model)) or torch.distributed.get_rank() == 0


def is_replica(model: nn.Module) -> bool:
    """Return whether others train the same model: DistributedDataParallel is around it, or was as it trained."""
    return _is_distributed() and any(one in _replicas or is_parallel(one) for one in model.modules())


def note_replica(model: nn.Module) -> None:
    """Remember, in the forward of a model, whether DistributedDataParallel called it."""
    if _is_distributed() and nn.parallel.DistributedDataParallel._get_active_ddp_module() is not None:
        _replicas.add(model)


def meet(model: nn.Module) -> None:
    """Wait for the other processes that hold parts of a model, if there are any."""
    if is_sharded(model):
        torch.distributed.barrier()


def is_sharded(model: nn.Module) -> bool:
    """Return whether any parameter of a model is spread over processes."""
    return _is_distributed() and any(map(is_sharded_tensor, model.parameters()))


def is_unit(module: nn.Module) -> bool:
    """Return whether `fully_shard` was called on a module."""
    if not _is_distributed():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def is_parallel(module: nn.Module) -> bool:
    """Return whether a module is DistributedDataParallel, which holds the same model in every process."""
    return isinstance(module, nn.parallel.DistributedDataParallel)


def own_class(model: nn.Module) -> type[nn.Module]:
    """Return the class that a model had before `fully_shard` gave it one of its own."""
    kind = type(model)
    if not _is_distributed():
        return kind
    from torch.distributed.fsdp import FSDPModule

    return (
        next(base for base in kind.__mro__[2:] if issubclass(base, nn.Module))
        if isinstance(model, FSDPModule)
        else kind
    )


def is_sharded_tensor(tensor: Tensor) -> bool:
    """Return whether a tensor is spread over processes."""
    if not _is_distributed():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
