"""What a start may look at, and what it may ask for, while the parameters of one adapter get their first values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lorakit.hooks.protocols import Quantizer
    from lorakit.planning.plan import Settings
    from lorakit.values import LayerShape


@dataclass(frozen=True, slots=True)
class StartContext:
    """One layer before its adapter and its stored weight exist.

    `weight()` returns the original weight as a matrix (outputs, inputs) in float32: inputs are in_features, in_channels
    · kernel or num_embeddings. `stored_weight()` returns the same matrix as the base layer will hold it: what the start
    took from it is gone, and it went through the quantizer, if there is one. `initialize(lora_A, lora_B)` fills two
    matrices as the rule's `init` says. `observed` is what this rule's initializer observed of the inputs, None if it
    does not look.
    `generator` is seeded from the run's seed and the module's path and lives on the CPU; `scaling` is alpha / rank
    (rsLoRA: / sqrt(rank)). `fan_in` counts the inputs that add up in an entry of A·x: 1 for a lookup.
    """

    path: str
    shape: LayerShape
    settings: Settings
    weight: Callable[[], Tensor]
    stored_weight: Callable[[], Tensor]
    initialize: Callable[[Tensor, Tensor], None]
    generator: torch.Generator
    quantizer: Quantizer | None = None
    observed: Any = None

    @property
    def scaling(self) -> float:
        """What B·A·x is multiplied by."""
        return self.settings.factor

    @property
    def fan_in(self) -> int:
        """The inputs that add up in one entry of A·x."""
        return self.shape.fan_in
