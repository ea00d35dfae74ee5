"""What torch.compile hands a block's graph to: products put together, attention chosen, and what is kept decided."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lorakit.compiling.groups import group

logger = logging.getLogger("lorakit")


@dataclass(frozen=True)
class Backend:
    """A backend of torch.compile.

    `kept` is the share that is kept of what would take time to compute again in the backward pass, from 0, where only
    what enters a block is kept, to 1. `inner` compiles what comes out; Inductor unless given.
    """

    kept: float = 1.0
    inner: Callable[[fx.GraphModule, Sequence[Any]], Any] | None = None

    def __call__(self, module: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Any:
        try:
            group(module)
            with _attention(inputs):
                return (self.inner or self._inductor)(module, inputs)
        except Exception as error:
            # a compiler has many reasons, and the block computes without it
            _say_once(f"{type(error).__name__}: {error}".partition("\n")[0])
            return module.forward

    def _inductor(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        from torch._inductor.compile_fx import compile_fx

        from lorakit.compiling.partition import Partitioner

        return compile_fx(module, inputs, config_patches={"custom_partitioner_fn": Partitioner(self.kept)})


@functools.cache
def _say_once(why: str) -> None:
    logger.warning("a block is not compiled, and computes one operation after the other: %s", why)


def _attention(inputs: Sequence[Any]) -> AbstractContextManager[Any]:
    """Prefer cuDNN's attention on Hopper and later, where it takes half of the time of torch's flash attention."""
    device = next((one.device for one in inputs if isinstance(one, Tensor) and one.is_cuda), None)
    # its backward pass may give other bits from run to run
    wanted = device is not None and not torch.are_deterministic_algorithms_enabled()
    if not wanted or torch.cuda.get_device_capability(device) < (9, 0):
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(order, set_priority=True)
