"""`pissa`: A and B are the principal part of the weight, and the base keeps the rest.

Source: Meng et al. 2024, "PiSSA", arXiv:2404.02948, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lorakit.hooks import StartContext

# more directions than are wanted, so that the last of those wanted come out well (Halko et al., section 4.2)
OVERSAMPLING = 10


@dataclass(frozen=True)
class PiSSA:
    """A and B from the weight's largest singular values, which the base gives up: what trains is what matters most.

    Of W₀ = U · S · Vᵀ, B · A · alpha / rank is the part of the first `rank` values, each matrix with the root of S. A
    quantized base stores what is left, which is smaller.
    """

    name: ClassVar[str] = "pissa"
    changes_base: ClassVar[bool] = True

    iterations: int | None = field(
        default=None, metadata={"help": "rounds of subspace iteration in place of the whole decomposition"}
    )

    def __post_init__(self) -> None:
        if self.iterations is not None and self.iterations < 0:
            raise ValueError("iterations must not be negative")

    def initialize(self, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
        """Fill lora_A (rank, inputs) and lora_B (outputs, rank)."""
        import torch

        if context.scaling <= 0:
            raise ValueError(f"the update is scaled by {context.scaling:g}, and no part of a weight is")
        weight, rank = context.weight(), len(lora_A)
        if self.iterations is None:
            left, values, right = torch.linalg.svd(weight, full_matrices=False)
        else:
            left, values, right = _leading(weight, rank, self.iterations, context.generator)
        roots = (values[:rank] / context.scaling).sqrt()
        lora_A.copy_(roots[:, None] * right[:rank])
        lora_B.copy_(left[:, :rank] * roots)


def _leading(weight: Tensor, rank: int, iterations: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return a decomposition whose first `rank` values are nearly those of the weight (Halko et al., arXiv:0909.4061).

    Algorithms 4.4 and 5.1: subspace iteration from a random start, and the small decomposition inside what it found.
    """
    import torch

    width = min(rank + OVERSAMPLING, *weight.shape)
    start = torch.randn(weight.shape[1], width, generator=generator).to(weight.device)
    basis, _ = torch.linalg.qr(weight @ start)
    for _ in range(iterations):
        other, _ = torch.linalg.qr(weight.T @ basis)
        basis, _ = torch.linalg.qr(weight @ other)
    left, values, right = torch.linalg.svd(basis.T @ weight, full_matrices=False)
    return basis @ left, values, right
