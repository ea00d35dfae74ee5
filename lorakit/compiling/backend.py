"""What torch.compile hands a block's graph to: products put together, attention chosen, and what is kept decided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lorakit.compiling.groups import group


@dataclass(frozen=True)
class Backend:
    """A backend of torch.compile.

    `kept` is the share that is kept of what would take time to compute again in the backward pass, from 0, where only
    what enters a block is kept, to 1. `inner` compiles what comes out; Inductor unless given.
    """

    kept: float = 1.0
    inner: Callable[[fx.GraphModule, Sequence[Any]], Any] | None = None

    def __call__(self, module: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Any:
        group(module)
        with _attention(inputs):
            if self.inner is not None:
                return self.inner(module, inputs)
            from torch._inductor.compile_fx import compile_fx

            from lorakit.compiling.partition import Partitioner

            return compile_fx(module, inputs, config_patches={"custom_partitioner_fn": Partitioner(self.kept)})


def _attention(inputs: Sequence[Any]) -> AbstractContextManager[Any]:
    """Prefer cuDNN's attention on Hopper and later, where it takes half of the time of torch's flash attention."""
    device = next((one.device for one in inputs if isinstance(one, Tensor) and one.is_cuda), None)
    if device is None or torch.cuda.get_device_capability(device) < (9, 0):
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(order, set_priority=True)
