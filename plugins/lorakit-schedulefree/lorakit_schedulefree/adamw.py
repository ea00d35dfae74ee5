"""Schedule-free AdamW.

Source: Defazio et al. 2024, "The Road Less Scheduled", arXiv:2405.15682.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ScheduleFree:
    """AdamW that averages its steps instead of letting the learning rate fall (Defazio et al. 2024, arXiv:2405.15682).

    Gradients are taken at y, between the average x, which is meant to be used, and the fast weights z; `train()` gives
    the model y, `eval()` gives it x.
    """

    name: ClassVar[str] = "schedulefree"
    default_lr: ClassVar[float] = 1e-3
    constant_lr: ClassVar[bool] = True
    changes_gradients: ClassVar[bool] = True
    betas: tuple[float, float] = field(
        default=(0.9, 0.999), metadata={"help": "share of the average in y, and decay of the second moment"}
    )
    eps: float = field(default=1e-8, metadata={"help": "added to the denominator"})
    weight_decay: float = field(default=0.0, metadata={"help": "share of a weight taken off a step, times lr"})
    warmup_steps: int = field(default=0, metadata={"help": "steps over which the learning rate rises"})

    def __post_init__(self) -> None:
        if not 0 < self.betas[0] < 1 or not 0 <= self.betas[1] < 1:
            raise ValueError("betas must be below 1, the first above 0 and the second not below it")
        if not self.eps > 0:
            raise ValueError("eps must be above 0")
        if self.weight_decay < 0:
            raise ValueError("weight_decay must not be negative")
        if self.warmup_steps < 0:
            raise ValueError("warmup_steps must not be negative")

    def build(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return schedulefree's AdamWScheduleFree, ready to step."""
        from schedulefree import AdamWScheduleFree

        optimizer: torch.optim.Optimizer = AdamWScheduleFree(
            list(groups),
            lr=self.default_lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            warmup_steps=self.warmup_steps,
        )
        optimizer.train()  # type: ignore[attr-defined]
        return optimizer

    def state(self, shape: tuple[int, ...], dtype: str) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """Return the fast weights and the second moment, both like the parameter."""
        return {"z": (shape, dtype), "exp_avg_sq": (shape, dtype)}
