"""`eva`: A looks where the inputs vary most, and layers that explain more of their inputs get more of the ranks.

Source: Paischer et al. 2024, "Explained Variance Adaptation", arXiv:2410.07170, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from lorakit.hooks import StartContext


# inputs that differ by less than this, relative to their size, are all the same
ROUNDING = 1e-6


@dataclass(frozen=True)
class Inputs:
    """What is known of a layer's inputs: their number and mean, their leading directions, and all that they vary.

    Shapes: mean (in_features,); directions (components or fewer, in_features), each as long as its singular value.
    """

    count: int
    mean: Tensor
    directions: Tensor
    variation: float

    @property
    def explained(self) -> list[float]:
        """The share of the variance that lies along each direction."""
        squares: list[float] = self.directions.square().sum(dim=1).tolist()
        rounding = self.count * float(self.mean.square().sum()) * ROUNDING**2
        return [square / self.variation if self.variation > rounding else 0.0 for square in squares]


@dataclass(frozen=True)
class EVA:
    """A = the principal components of what goes into the layer, B = 0, and ranks by the variance that they explain.

    The sum of the ranks stays: of the components of all layers those that explain most of their layer's inputs are
    taken, at most `rho` times the planned rank from each. A layer that gets none is not adapted.
    """

    name: ClassVar[str] = "eva"

    rho: float = field(
        default=2.0, metadata={"help": "a rank grows to so many times the planned one at most; 1 keeps all"}
    )
    components: int = field(
        default=128,
        metadata={"help": "the directions that are kept of each layer's inputs, the most that a rank can be"},
    )

    def __post_init__(self) -> None:
        if not 1 <= self.rho < math.inf:
            raise ValueError("rho must be 1 or more")
        if self.components < 1:
            raise ValueError("components must be 1 or more")

    def observe(self, x: Tensor, observed: Inputs | None) -> Inputs:
        """Return the principal components of all inputs so far, as the paper finds them: one decomposition a batch."""
        import torch

        x = x.detach().flatten(0, -2).float() if x.ndim > 1 else x.detach()[None].float()
        count, mean = len(x), x.mean(dim=0)
        if not count:
            return observed or Inputs(0, x.new_zeros(x.shape[1]), x[:0], 0.0)
        rows = x - mean
        variation = float(rows.double().square().sum())
        if observed is not None and observed.count:
            total = observed.count + count
            between = (observed.mean - mean) * math.sqrt(observed.count * count / total)
            rows = torch.cat([observed.directions, rows, between[None]])
            variation += observed.variation + float(between.double().square().sum())
            count, mean = total, observed.mean + (mean - observed.mean) * (count / total)
        _, values, right = torch.linalg.svd(rows, full_matrices=False)
        kept = right[: self.components]
        # an SVD leaves the signs open: the largest entry of each is positive
        largest = kept.gather(1, kept.abs().argmax(dim=1, keepdim=True))
        return Inputs(count, mean, values[: self.components, None] * kept * largest.sign(), variation)

    def ranks(self, planned: Mapping[str, int], observed: Mapping[str, Inputs | None]) -> Mapping[str, int]:
        """Return ranks of the same sum, by explained variance; a layer that nothing reached keeps its own."""
        known = {path: inputs for path, inputs in observed.items() if inputs is not None and inputs.count > 1}
        shares = [
            (share, path)
            for path, inputs in known.items()
            for share in inputs.explained[: round(planned[path] * self.rho)]
        ]
        budget = sum(planned[path] for path in known)
        ranks = {path: 0 if path in known else rank for path, rank in planned.items()}
        for _, path in sorted(shares, key=lambda one: one[0], reverse=True)[:budget]:
            ranks[path] += 1
        return ranks

    def initialize(self, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
        """Fill lora_A (rank, inputs) with components, or as `gaussian` where none is known, and lora_B with zeros."""
        lora_B.zero_()
        lora_A.normal_(0.0, 1 / math.sqrt(context.fan_in), generator=context.generator)
        inputs: Inputs | None = context.observed
        if inputs is None:
            return
        if len(lora_A) > self.components:
            raise ValueError(f"rank {len(lora_A)} is more than the components that are kept: components={len(lora_A)}")
        directions = inputs.directions[: len(lora_A)].to(lora_A.device)
        lengths = directions.norm(dim=1, keepdim=True)
        # where the inputs vary no more there is no direction to take
        known = lengths[:, 0] > 0
        lora_A[: len(directions)][known] = directions[known] / lengths[known]
