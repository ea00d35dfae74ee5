"""Blocks that a plan has computed again in the backward pass: what enters one is kept, and the rest made anew.

Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, by torch's own `checkpoint`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from lorakit.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from lorakit.planning.plan import Plan


@hookimpl
def lorakit_model_ready(model: nn.Module, plan: Plan) -> None:
    from lorakit.huggingface import marks

    for path in plan.memory.recomputed:
        block = model.get_submodule(path)
        # transformers' blocks see to caches too, and their own switch is what trainers look at
        if not marks.recompute(block, again) and not isinstance(vars(block).get("forward"), Again):
            block.forward = Again(block, block.forward)


@hookimpl
def lorakit_model_merged(model: nn.Module) -> None:
    from lorakit.huggingface import marks

    for module in model.modules():
        marks.compute_once(module, again)
        if isinstance(own := vars(module).get("forward"), Again):
            own.leave()


class Again:
    """Stands in the place of a block's forward."""

    def __init__(self, block: nn.Module, forward: Any) -> None:
        self._block = block
        # what somebody put there before, if it is not the class's
        self._own = vars(block).get("forward")
        functools.update_wrapper(self, forward, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import torch

        own = self._own or type(self._block).forward.__get__(self._block)
        if not (self._block.training and torch.is_grad_enabled()):
            return own(*args, **kwargs)
        return again(own, *args, **kwargs)

    def leave(self) -> None:
        """Give the place back."""
        if self._own is None:
            del self._block.forward
        else:
            self._block.forward = self._own


def again(forward: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute now what is computed again in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
