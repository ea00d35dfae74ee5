"""`adamw`, `adamw8bit` and `sgd`; paged groups take bitsandbytes' paged optimizers where there is a GPU."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.hooks.protocols import OptimizerFactory
from lorakit.hooks.specs import hookimpl

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# bitsandbytes keeps smaller tensors in 32 bits, and quantizes the rest in blocks of 256 with one float32 scale each
MIN_8BIT_SIZE, BLOCKSIZE_8BIT = 4096, 256
# bitsandbytes leaves the state of smaller tensors where it is
PAGES_FROM = 100_000

State = Mapping[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Adam:
    """What the Adams share: two moments of the gradient, and weight decay apart from them."""

    pages_from: ClassVar[int] = PAGES_FROM
    betas: tuple[float, float] = field(default=(0.9, 0.999), metadata={"help": "decay of the two moments"})
    eps: float = field(default=1e-8, metadata={"help": "added to the denominator"})
    weight_decay: float = field(default=0.0, metadata={"help": "share of a weight taken off a step, times lr"})

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas must both be at least 0 and below 1")

    @property
    def _arguments(self) -> dict[str, Any]:
        return {"betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv:1711.05101)."""

    name: ClassVar[str] = "adamw"
    default_lr: ClassVar[float] = 2e-4

    def build(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return torch's AdamW, or bitsandbytes' paged one on CUDA."""
        import torch

        if pages(groups):
            import bitsandbytes as bnb

            return bnb.optim.PagedAdamW(list(groups), lr=self.default_lr, **self._arguments)
        # one kernel for all parameters, where torch has it
        fused = all(parameter.is_cuda for group in groups for parameter in group["params"]) or None
        return torch.optim.AdamW(list(groups), lr=self.default_lr, fused=fused, **self._arguments)

    def state(self, shape: tuple[int, ...], dtype: str) -> State:
        """Return the count of steps and two moments like the parameter; bitsandbytes' paged ones are in float32."""
        return {"step": ((), "float32"), "exp_avg": (shape, dtype), "exp_avg_sq": (shape, dtype)}


@dataclass(frozen=True)
class AdamW8bit(Adam):
    """AdamW with both moments in eight bits (Dettmers et al. 2021, arXiv:2110.02861)."""

    name: ClassVar[str] = "adamw8bit"
    default_lr: ClassVar[float] = 2e-4

    def build(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return bitsandbytes' AdamW8bit, paged on CUDA where asked."""
        import bitsandbytes as bnb

        kind = bnb.optim.PagedAdamW8bit if pages(groups) else bnb.optim.AdamW8bit
        return kind(list(groups), lr=self.default_lr, **self._arguments)

    def state(self, shape: tuple[int, ...], dtype: str) -> State:
        """Return two moments with their scales and tables of 256 levels, or in float32 for a small parameter."""
        count = math.prod(shape)
        if count < MIN_8BIT_SIZE:
            return {"state1": (shape, "float32"), "state2": (shape, "float32")}
        moment = {"state": (shape, "uint8"), "absmax": ((-(-count // BLOCKSIZE_8BIT),), "float32")}
        moment["qmap"] = ((256,), "float32")
        return {f"{name}{number}": tensor for number in (1, 2) for name, tensor in moment.items()}


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, plain or with momentum."""

    name: ClassVar[str] = "sgd"
    default_lr: ClassVar[float] = 1e-2
    momentum: float = field(default=0.0, metadata={"help": "share of the last step that the next one keeps"})
    nesterov: bool = field(default=False, metadata={"help": "look ahead by the momentum"})
    weight_decay: float = field(default=0.0, metadata={"help": "L2 penalty"})

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError("momentum must be at least 0 and below 1")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")

    def build(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return torch's SGD; its state, one buffer at most, is not paged."""
        import torch

        return torch.optim.SGD(
            list(groups),
            lr=self.default_lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )

    def state(self, shape: tuple[int, ...], dtype: str) -> State:
        """Return the momentum buffer, if there is one."""
        return {"momentum_buffer": (shape, dtype)} if self.momentum else {}


def pages(groups: Sequence[dict[str, Any]]) -> bool:
    """Return whether these groups ask for paging and lie where state can be paged out of: on CUDA."""
    if not any(group.get("paged") for group in groups):
        return False
    if any(parameter.is_cuda for group in groups for parameter in group["params"]):
        return True
    logger.warning("paged: the model is on the CPU, where optimizer state already lives in CPU memory; nothing to page")
    return False


@hookimpl
def lorakit_optimizers() -> list[type[OptimizerFactory]]:
    return [AdamW, AdamW8bit, SGD]
