"""What a model's own modules keep count of as it runs: it stays as the base has it, unless an adapter trains them."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from lorakit.application.places import base_of, stored_buffers
from lorakit.application.state import Adapted
from lorakit.planning.wrappers import plain_modules

# larger buffers are weights that another library stores so, and no counts
MAX_BYTES = 2**20


def hold_still(model: nn.Module, state: Adapted) -> None:
    """Keep running means and spectral norms in evaluation mode where no adapter in use trains their module.

    In training mode each forward would move them: the base would not stay what it was, and an adapter that is saved
    without them would not answer as it did.
    """
    trained = {base_of(model, entry) for adapter in state.used for entry in adapter.plan.entries if entry.train}
    for module in model.modules():
        if not _counts(module):
            continue
        if module in trained:
            _release(module, model.training)
        elif "train" not in vars(module):
            vars(module)["train"] = functools.partial(_stay, module)
            module.training = False


def let_go(model: nn.Module) -> None:
    """Give all modules their own training mode back."""
    for module in model.modules():
        _release(module, model.training)


def small_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return copies on the CPU of what a model's modules may count in, by the paths of a model without adapters."""
    return {name: buffer.detach().to("cpu", copy=True) for name, buffer in _buffers(model)}


def moved_buffers(model: nn.Module, state: Adapted) -> dict[str, Tensor]:
    """Return the buffers that are not what the base has, and that no adapter holds, by the paths of `small_buffers`."""
    whole = [entry for adapter in state.named.values() for entry in adapter.plan.entries if entry.is_whole]
    held = {base_of(model, entry) for entry in whole}
    own = {id(buffer) for module in held if isinstance(module, nn.Module) for _, buffer in stored_buffers(module)}
    return {
        name: buffer for name, buffer in _buffers(model)
        if name in state.buffers and id(buffer) not in own and not _is_same(buffer, state.buffers[name])
    }  # fmt: skip


def _is_same(buffer: Tensor, before: Tensor) -> bool:
    # it may be held in another dtype meanwhile
    return buffer.shape == before.shape and torch.equal(buffer.detach().cpu(), before.to(buffer.dtype))


def _buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in plain_modules(model.named_modules()).items():
        for name, buffer in stored_buffers(module):
            if buffer.numel() * buffer.element_size() <= MAX_BYTES and not buffer.is_meta:
                # of an adapted layer it is that of the layer inside
                yield f"{path}.{name}".removeprefix(".").replace(".base_layer.", "."), buffer


def _counts(module: nn.Module) -> bool:
    if isinstance(module, _NormBase):
        return module.running_mean is not None
    return isinstance(module, _SpectralNorm) or any(
        isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values()
    )


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """Stand for a module's own `train`: what is inside it follows, and it stays in evaluation mode."""
    type(module).train(module, mode)
    module.training = False
    return module


def _release(module: nn.Module, mode: bool) -> None:
    held = vars(module).get("train")
    if isinstance(held, functools.partial) and held.func is _stay:
        del vars(module)["train"]
        module.train(mode)
