"""A model's blocks, compiled in place for training, whatever model they are of."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from lorakit.application.again import Again
from lorakit.application.layout import blocks_of
from lorakit.application.sharding import is_unit
from lorakit.compiling.away import Away, Held
from lorakit.compiling.backend import Backend
from lorakit.errors import ModelError
from lorakit.huggingface import marks
from lorakit.layers.lora_layer import LoRALayer
from lorakit.layers.quantized_linear import QuantizedLinear

# forms of a block, of a few kinds in one model and a few lengths of rows, before torch compiles no more of them
FORMS = 64
# the share that the link to CPU memory carries beside a forward pass: outputs of attention and its products
SENT = 0.35


def compile_blocks(model: nn.Module, *, kept: float = 1.0, send: bool = False) -> int:
    """Compile the blocks of an adapted model where they are trained, and return how many there are.

    `kept` is the share of a block's products and attention that is kept for the backward pass; the rest is computed
    again. Where a block is to be computed again, by its plan or by gradient checkpointing, none is. With `send` what is
    kept waits in pinned CPU memory. Raises: ModelError where there is no block, or it cannot be compiled.
    """
    if any(is_unit(module) for module in model.modules()):
        raise ModelError("compile_blocks: the model is sharded, and its units gather weights while they compute")
    blocks = _blocks(model)
    if not blocks:
        raise ModelError(
            "compile_blocks: the model has no adapted blocks, which are members of a numbered container such as "
            "`layers`; `torch.compile` compiles it whole"
        )
    device = next(model.parameters()).device
    if send and device.type != "cuda":
        raise ModelError(
            "compile_blocks: `send` is for models on a CUDA device; this one is on a CPU, which has no other"
        )
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, FORMS)
    away = Away(model, device) if send else None
    chain = _Chain()
    for number, block in enumerate(blocks):
        share = 0.0 if _computed_again(block) else min(kept, SENT) if send else kept
        compiled = Compiled(block, share, away, chain, is_first=not number)
        # where torch's own `module.compile()` puts what it compiled
        block._compiled_call_impl = compiled
    return len(blocks)


def compile_if_any(model: nn.Module) -> int:
    """Compile the blocks of a model that has some which can be; return how many there are."""
    try:
        return compile_blocks(model)
    except ModelError:
        return 0


class _Chain:
    """What the block before sent, in the pass that runs."""

    sent: Sequence[Held] = ()


class Compiled:
    """Stands for a block's call: compiled where it learns, as ever elsewhere."""

    # what shards a model asks before it does: weights have to lie whole where the block computes
    needs_whole_weights = True

    def __init__(self, block: nn.Module, kept: float, away: Away | None, chain: _Chain, *, is_first: bool) -> None:
        self._block, self._away, self._chain, self._is_first = block, away, chain, is_first
        self._run = torch.compile(block._call_impl, backend=backend(kept))
        self._again = torch.compile(block._call_impl, backend=backend(0.0))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        block = self._block
        if not (block.training and torch.is_grad_enabled()):
            # a pass of another form, as that of each next token, would be compiled for itself
            return block._call_impl(*args, **kwargs)
        if marks.is_recomputed(block):
            # a trainer has switched it on since
            with marks.computed_once(block):
                return self._sending(self._again, args, kwargs)
        return self._sending(self._run, args, kwargs)

    def _sending(self, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._away is None:
            return run(*args, **kwargs)
        if self._is_first:
            self._chain.sent = ()
        with self._away.around(self._chain.sent) as sent:
            result = run(*args, **kwargs)
        self._chain.sent = sent
        return result


@functools.cache
def backend(kept: float) -> Backend:
    """Return the one backend of a share: what is compiled for one block serves all that are alike."""
    return Backend(kept)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks that adapters or quantized layers lie in, in the model's order."""
    return [block for block in blocks_of(model).values() if any(map(_is_ours, block.modules()))]


def _is_ours(module: nn.Module) -> bool:
    return isinstance(module, LoRALayer | QuantizedLinear)


def _computed_again(block: nn.Module) -> bool:
    """Return whether a plan or a trainer has a block computed again, which it is from now on as it is compiled."""
    own = vars(block).get("forward")
    if isinstance(own, Again):
        own.leave()
        return True
    if marks.is_recomputed(block):
        marks.switch_off(block)
        return True
    return False
