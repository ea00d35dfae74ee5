"""`spectral`: A looks where the base weight looks, B is zero."""

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
class Spectral:
    """A = the base weight's leading right singular vectors, B = 0: adapters read what the layer amplifies most.

    Of W₀ = U·S·Vᵀ, A is the first rows of Vᵀ. PiSSA (Meng et al. 2024, arXiv:2404.02948) starts in this subspace too
    and takes it out of the base weight; here the base weight stays, so a fresh adapter changes nothing. LoRA-XS (Bałazy
    et al. 2024, arXiv:2405.17604) keeps such an A frozen. The vectors come from subspace iteration on a random start
    (Halko, Martinsson and Tropp 2011, arXiv:0909.4061, algorithms 4.4 and 5.1).
    """

    name: ClassVar[str] = "spectral"
    iterations: int = field(default=4, metadata={"help": "rounds of subspace iteration; more come nearer to the SVD"})

    def __post_init__(self) -> None:
        if self.iterations < 0:
            raise ValueError("iterations must not be negative")

    def initialize(self, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
        """Fill lora_A (rank, inputs) with orthonormal rows and lora_B (outputs, rank) with zeros."""
        # on the CPU in float32, so that every device and dtype gives the same vectors for the same weight
        weight = context.weight().detach().float().cpu()
        lora_A.copy_(leading_right_vectors(weight, lora_A.shape[0], self.iterations, context.generator))
        lora_B.zero_()


def leading_right_vectors(weight: Tensor, rank: int, iterations: int, generator: torch.Generator) -> Tensor:
    """Return the first `rank` right singular vectors of weight (outputs, inputs) as rows (rank, inputs).

    The largest entry of each is positive, which an SVD leaves open. Exact where rank + OVERSAMPLING fills the weight.
    """
    import torch

    width = min(rank + OVERSAMPLING, *weight.shape)
    basis, _ = torch.linalg.qr(weight @ torch.randn(weight.shape[1], width, generator=generator))
    for _ in range(iterations):
        other, _ = torch.linalg.qr(weight.T @ basis)
        basis, _ = torch.linalg.qr(weight @ other)
    _, _, right = torch.linalg.svd(basis.T @ weight, full_matrices=False)
    rows: Tensor = right[:rank]
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    rows *= torch.where(largest < 0, -1.0, 1.0)
    return rows
