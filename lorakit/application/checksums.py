"""Quantized weights that are sharded, held once against what they were: bytes that a gathering changes are noticed.

A checksum is taken before a model is sharded, in every process, and looked at when a layer first multiplies with what
was gathered for it. After that nothing is left to be called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.application.sharding import is_sharded_tensor, is_unit
from lorakit.errors import TrainingError
from lorakit.layers.quantized_linear import QuantizedLinear

# sums of a tensor: parts that changed places change them too
PARTS = 8
WORD = 8


def remember(model: nn.Module) -> None:
    """Take the checksums of a model's quantized weights, and look at them in its first forward to train if sharded."""
    for layer in model.modules():
        if isinstance(layer, QuantizedLinear):
            layer.checksums = {name: checksum(tensor) for name, tensor in layer.tensors.items()}
    if _before_forward not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_before_forward)


def forget(model: nn.Module) -> None:
    """Undo `remember`."""
    _remove(model, _before_forward)
    for layer in model.modules():
        if isinstance(layer, QuantizedLinear):
            layer.checksums = {}


def is_useful() -> bool:
    """Return whether several processes work here, so that a model may be sharded."""
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def checksum(tensor: Tensor) -> Tensor:
    """Return sums (at most 8) of what a tensor's bytes are as whole numbers, parted, on its device."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if flat.numel() % WORD == 0:
        # what was gathered may begin anywhere
        flat = (flat if flat.data_ptr() % WORD == 0 else flat.clone()).view(torch.int64)
    return torch.stack([part.sum(dtype=torch.int64) for part in flat.tensor_split(PARTS)])


def _before_forward(model: nn.Module, args: Any) -> None:
    if torch.compiler.is_compiling() or not (model.training and torch.is_grad_enabled()):
        return
    _remove(model, _before_forward)
    if not any(map(is_unit, model.modules())):
        return
    from torch import distributed

    layers = {path: one for path, one in model.named_modules() if isinstance(one, QuantizedLinear) and one.checksums}
    # where accelerate loads weights in the first process alone, the others held nothing
    is_first = distributed.get_rank() == 0
    sums = [{path: _numbers(layer.checksums) for path, layer in layers.items()} if is_first else {}]
    distributed.broadcast_object_list(sums)
    for path, layer in layers.items():
        layer.checksums = {}
        layer.register_forward_pre_hook(_Looking(path, sums[0].get(path, {})))


class _Looking:
    """Looks at a layer's gathered tensors before its next forward, and then no more."""

    def __init__(self, path: str, expected: Mapping[str, list[int]]) -> None:
        self._path, self._expected = path, expected

    def __call__(self, layer: QuantizedLinear, args: Any) -> None:
        if torch.compiler.is_compiling() or any(map(is_sharded_tensor, layer.tensors.values())):
            return
        _remove(layer, self)
        found = _numbers({name: checksum(tensor) for name, tensor in layer.tensors.items()})
        if changed := [name for name, numbers in self._expected.items() if found[name] != numbers]:
            raise TrainingError(
                f"the quantized weight of `{self._path}` came out of FSDP with other bytes than it went in with (its "
                f"{', '.join(f'`{name}`' for name in changed)}): what gathers it here changes bits, as some versions "
                "of torch do with packed bytes; have the frozen weights whole on every device instead, by "
                '`lorakit.shard(model, frozen="replicate")` or DistributedDataParallel, or take another torch'
            )


def _numbers(sums: Mapping[str, Tensor]) -> dict[str, list[int]]:
    # one transfer for all of a layer
    values = torch.stack(list(sums.values())).tolist()
    return dict(zip(sums, values, strict=True))


def _remove(module: nn.Module, hook: Any) -> None:
    for key, one in list(module._forward_pre_hooks.items()):
        if one is hook:
            del module._forward_pre_hooks[key]
