"""How an adapted model lies on several devices: which of its parameters are sharded together, and which stay whole."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from lorakit.application.checksums import remember
from lorakit.application.sharding import is_unit
from lorakit.application.state import state_of, unwrapped
from lorakit.application.trainables import trainables, trained_by
from lorakit.application.waiting import any_waits, hand_out
from lorakit.dtypes import name_of, short_name
from lorakit.errors import ModelError
from lorakit.planning.targets import block_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Frozen = Literal["shard", "replicate"]
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def shard_model(model: nn.Module, mesh: DeviceMesh | None = None, *, frozen: Frozen = "shard") -> nn.Module:
    """Spread an adapted model over the processes of a mesh by torch's `fully_shard`, and return it.

    `shard` spreads everything, a block of the model at a time, as the outermost numbered containers hold them.
    `replicate` leaves what no adapter trains whole on every device and spreads what trains, its gradients and its
    optimizer state, in one piece: a step gathers and sends adapters alone.
    Raises: ModelError if the model is not adapted, is sharded already, or trains several dtypes in one piece.
    """
    from torch.distributed.fsdp import fully_shard

    model = unwrapped(model)
    mesh = _checked(model, mesh)
    remember(model)
    trained = {one for adapter in state_of(model).named.values() for _, one in trained_by(model, adapter)}
    blocks = blocks_of(model)
    ignored = {one for one in model.parameters() if one not in trained and (frozen == "replicate" or one.ndim == 0)}
    several = _of_several(model, blocks)
    if frozen == "replicate" or trained & several:
        # what trains in several places at once belongs to one piece
        blocks = {}
    ignored |= several - trained
    check_pieces(model, blocks)
    hands_out, device = any_waits(model, mesh), _device_of(mesh)
    if frozen == "replicate":
        if hands_out:
            hand_out(model, device)
        # what is left whole is moved by nobody else
        model.to(device)
    with _taking_whole_numbers():
        for block in blocks.values():
            if hands_out:
                # one at a time: the rest of it is still in the first process alone
                hand_out(block, device)
            fully_shard(block, mesh=mesh, ignored_params=ignored)
        if hands_out:
            hand_out(model, device)
            state_of(model).waits = False
        # torch keeps the outermost piece gathered by itself, where there are others
        keeps = False if frozen == "replicate" else None
        fully_shard(model, mesh=mesh, ignored_params=ignored, reshard_after_forward=keeps)
    return model


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the members of the outermost numbered containers that hold parameters, by path."""
    paths = dict.fromkeys(block_of(name) for name, _ in model.named_parameters())
    modules = dict(model.named_modules())
    return {path: modules[path] for path in paths if path in modules and path and not _is_container(modules[path])}


def check_pieces(model: nn.Module, blocks: Mapping[str, nn.Module]) -> None:
    """Raise ModelError where what trains in one piece, a block or all that is outside of them, has several dtypes."""
    pieces: dict[str, dict[torch.dtype, str]] = {}
    for path, parameter in trainables(model).items():
        if parameter.requires_grad:
            piece = block if (block := block_of(path)) in blocks else ""
            pieces.setdefault(piece, {}).setdefault(parameter.dtype, path)
    for piece, found in pieces.items():
        if len(found) > 1:
            kinds = " and ".join(f"{short_name(name_of(dtype))} (`{path}`)" for dtype, path in found.items())
            where = f"`{piece}`" if piece else "the model outside of its sharded blocks"
            raise ModelError(
                f"FSDP shards what trains in {where} together, and takes one dtype there, not {kinds}: write one "
                "`dtype` for all rules, that of the model where weights train in full"
            )


def is_to_be_sharded() -> bool:
    """Return whether accelerate has been told to shard what it prepares in this process."""
    accelerate: Any = sys.modules.get("accelerate.state")
    if accelerate is None or not accelerate.AcceleratorState._shared_state:
        return False
    return bool(accelerate.AcceleratorState().distributed_type == accelerate.DistributedType.FSDP)


def casts_what_trains() -> bool:
    """Return whether accelerate, which is to shard a model, first makes float32 of all that trains in it."""
    accelerate: Any = sys.modules.get("accelerate.state")
    return is_to_be_sharded() and accelerate.AcceleratorState().mixed_precision != "no"


def _checked(model: nn.Module, mesh: DeviceMesh | None) -> DeviceMesh:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    state_of(model)
    if not (distributed.is_available() and distributed.is_initialized()):
        raise ModelError(
            "a model is sharded over processes that know each other: start them by torchrun, and call "
            "torch.distributed.init_process_group() before"
        )
    if any(map(is_unit, model.modules())):
        raise ModelError("this model is sharded already")
    if any(getattr(one._compiled_call_impl, "needs_whole_weights", False) for one in model.modules()):
        raise ModelError(
            "the blocks of this model are compiled by `compile_blocks`, for weights that lie whole on a device; leave "
            "it out, or the sharding"
        )
    if mesh is not None:
        return mesh
    return init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (distributed.get_world_size(),))


def _device_of(mesh: DeviceMesh) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if mesh.device_type == "cuda" else torch.device("cpu")


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, CONTAINERS)


def _of_several(model: nn.Module, blocks: Collection[str]) -> set[nn.Parameter]:
    """Return the parameters that belong to several blocks, or to a block and what is outside."""
    places: dict[nn.Parameter, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(parameter, set()).add(block if (block := block_of(name)) in blocks else "")
    return {parameter for parameter, found in places.items() if len(found) > 1}


class _FloatsAlone:
    """torch.nn, of which parameters want a gradient unless told otherwise only where they can have one."""

    def __getattr__(self, name: str) -> Any:
        return getattr(nn, name)

    @staticmethod
    def Parameter(data: torch.Tensor, requires_grad: bool | None = None) -> nn.Parameter:  # noqa: N802
        return nn.Parameter(data, data.is_floating_point() if requires_grad is None else requires_grad)


@contextmanager
def _taking_whole_numbers() -> Iterator[None]:
    """Let `fully_shard` take parameters of whole numbers: before torch 2.13 it lets each want a gradient at first."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param

    held: Any = _fsdp_param
    held.nn = _FloatsAlone()
    try:
        yield
    finally:
        held.nn = nn
