"""Models whose parameters are spread over processes by `fully_shard`: what needs whole tensors gathers them here.

Gathering is collective: every process of the mesh has to do it, in the same order. One of them writes files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all of its parts; collective where it is sharded."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined,no-any-return]


def fill(tensor: Tensor, value: Tensor) -> None:
    """Copy a whole value into a tensor, which may be sharded: each process copies its own part."""
    if _is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        held: Any = tensor
        value = distribute_tensor(value.to(tensor.device, tensor.dtype), held.device_mesh, held.placements)
    tensor.copy_(value)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Let a module and those in it hold whole parameters inside the block, to be read; collective if any is sharded."""
    replaced: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for one in module.modules():
            for name, parameter in one._parameters.items():
                if parameter is not None and _is_sharded(parameter):
                    replaced.append((one._parameters, name, parameter))
        for held, name, parameter in replaced:
            held[name] = nn.Parameter(whole(parameter.detach()), requires_grad=False)
        yield
    finally:
        for held, name, parameter in replaced:
            held[name] = parameter


def writes(model: nn.Module) -> bool:
    """Return whether this process writes the files of a model: the first one, where the model is sharded."""
    return not is_sharded(model) or torch.distributed.get_rank() == 0


def meet(model: nn.Module) -> None:
    """Wait for the other processes that hold parts of a model, if there are any."""
    if is_sharded(model):
        torch.distributed.barrier()


def is_sharded(model: nn.Module) -> bool:
    """Return whether any parameter of a model is spread over processes."""
    return _is_distributed() and any(map(_is_sharded, model.parameters()))


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


def _is_sharded(tensor: Tensor) -> bool:
    if not _is_distributed():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
