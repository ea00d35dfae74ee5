"""`adamw`, `adamw8bit` and `sgd`; paged groups take bitsandbytes' paged optimizers where there is a GPU."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.hooks.protocols import OptimizerFactory
from lorakit.hooks.specs import hookimpl

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# bitsandbytes keeps smaller tensors in 32 bits, and quantizes the rest in blocks of 256 with one float32 scale each
MIN_8BIT_SIZE, BLOCKSIZE_8BIT = 4096, 256


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
        """Return torch's AdamW, or bitsandbytes' paged one on CUDA."""
        import torch

        if pages(groups):
            import bitsandbytes as bnb

            return bnb.optim.PagedAdamW(list(groups), lr=self.default_lr, **self._arguments)
        return torch.optim.AdamW(list(groups), lr=self.default_lr, **self._arguments)

    def state_bytes(self, parameters: int, bytes_per_parameter: int) -> int:
        """Return the bytes of two moments in the parameters' own width."""
        return 2 * bytes_per_parameter * parameters


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

    def state_bytes(self, parameters: int, bytes_per_parameter: int) -> int:
        """Return the bytes of two moments with their scales and their two tables of 256 levels."""
        if parameters < MIN_8BIT_SIZE:
            return 2 * 4 * parameters
        return 2 * (parameters + 4 * -(-parameters // BLOCKSIZE_8BIT)) + 2 * 4 * 256


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

    def state_bytes(self, parameters: int, bytes_per_parameter: int) -> int:
        """Return the bytes of the momentum buffer, if there is one."""
        return bytes_per_parameter * parameters if self.momentum else 0


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
