"""`gaussian` and `kaiming`: A random, B zero, so that a fresh adapter changes nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from lorakit.hooks.protocols import Initializer
from lorakit.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from lorakit.hooks.starting import StartContext


@dataclass(frozen=True)
class Gaussian:
    """A ~ N(0, sigma²), B = 0; without sigma, 1 / sqrt(fan_in), which keeps the variance of the input.

    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1; the default sigma: Hayou et al. 2024, arXiv:2402.12354.
    """

    name: ClassVar[str] = "gaussian"
    sigma: float | None = field(
        default=None, metadata={"help": "standard deviation of A; 1 / sqrt(fan_in) unless given"}
    )

    def __post_init__(self) -> None:
        if self.sigma is not None and not 0 < self.sigma < math.inf:
            raise ValueError("sigma must be a positive number")

    def initialize(self, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
        """Fill lora_A (rank, inputs) with Gaussian values and lora_B (outputs, rank) with zeros."""
        sigma = self.sigma if self.sigma is not None else 1 / math.sqrt(context.fan_in)
        lora_A.normal_(0.0, sigma, generator=context.generator)
        lora_B.zero_()


@dataclass(frozen=True)
class Kaiming:
    """A uniform within ± 1 / sqrt(fan_in), B = 0: what loralib and PEFT do by default.

    Source: He et al. 2015, arXiv:1502.01852, with a = sqrt(5).
    """

    name: ClassVar[str] = "kaiming"

    def initialize(self, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
        """Fill lora_A (rank, inputs) with uniform values and lora_B (outputs, rank) with zeros."""
        bound = 1 / math.sqrt(context.fan_in)
        lora_A.uniform_(-bound, bound, generator=context.generator)
        lora_B.zero_()


@hookimpl
def lorakit_initializers() -> list[type[Initializer]]:
    return [Gaussian, Kaiming]
