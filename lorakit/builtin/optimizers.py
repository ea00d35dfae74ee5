"""`adamw`, `adamw8bit` and `sgd`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.hooks.protocols import OptimizerFactory
from lorakit.hooks.specs import hookimpl

if TYPE_CHECKING:
    import torch

# bitsandbytes keeps smaller tensors in 32 bits, and quantizes the rest in blocks of 256 with one float32 scale each
MIN_8BIT_SIZE, BLOCKSIZE_8BIT = 4096, 256

State = Mapping[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Adam:
    """What the Adams share: two moments of the gradient, and weight decay apart from them."""

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
        """Return torch's AdamW."""
        import torch

        # one kernel for all parameters, where torch has it
        fused = all(parameter.is_cuda for group in groups for parameter in group["params"]) or None
        return torch.optim.AdamW(list(groups), lr=self.default_lr, fused=fused, **self._arguments)

    def state(self, shape: tuple[int, ...], dtype: str) -> State:
        """Return the count of steps and two moments like the parameter."""
        return {"step": ((), "float32"), "exp_avg": (shape, dtype), "exp_avg_sq": (shape, dtype)}


@dataclass(frozen=True)
class AdamW8bit(Adam):
    """AdamW with both moments in eight bits (Dettmers et al. 2021, arXiv:2110.02861)."""

    name: ClassVar[str] = "adamw8bit"
    default_lr: ClassVar[float] = 2e-4
    shared_state: ClassVar[tuple[str, ...]] = ("qmap1", "qmap2")

    def build(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return bitsandbytes' AdamW8bit."""
        import bitsandbytes as bnb

        optimizer: torch.optim.Optimizer = bnb.optim.AdamW8bit(list(groups), lr=self.default_lr, **self._arguments)
        return optimizer

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
        """Return torch's SGD."""
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


@hookimpl
def lorakit_optimizers() -> list[type[OptimizerFactory]]:
    return [AdamW, AdamW8bit, SGD]
