"""transformers' Trainer, and those made of it, with forward and backward of its steps as CUDA graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import Trainer

from lorakit.errors import ModelError
from lorakit.stepping.captured import Captured
from lorakit.stepping.losses import OwnLoss, several_processes
from lorakit.trainers.surviving import SUMS

logger = logging.getLogger("lorakit")


@dataclass(frozen=True, slots=True)
class TrainersLoss(OwnLoss):
    """The loss of a model as a trainer has it computed: in its dtype, divided by what all batches of a step learn."""

    trainer: Any

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        with self.trainer.compute_loss_context_manager():
            return OwnLoss.loss(self, model, batch)


class Capturing:
    """Stands around the steps of one trainer: a batch of a form that can be captured runs as a graph."""

    def __init__(self, trainer: Trainer, watch: Callable[[Tensor], None], say: Callable[[str], None]) -> None:
        model: Any = trainer.model
        self._trainer: Any = trainer
        self._step = trainer.training_step
        self._captured = Captured(model, TrainersLoss(model, trainer), say)
        self._watch = watch

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Do what the trainer's own does."""
        loss = None
        if model is self._trainer.model and isinstance(num_items_in_batch, Tensor):
            model.train()
            batch = self._trainer._prepare_inputs({**inputs, "num_items_in_batch": num_items_in_batch})
            loss = self._captured.take(batch, 1.0)
        if loss is None:
            loss = self._step(model, inputs, num_items_in_batch)
        else:
            self._watch(loss)
        return loss


def capture(
    trainer: Trainer,
    *,
    watch: Callable[[Tensor], None] = lambda loss: None,
    say: Callable[[str], None] = logger.warning,
) -> None:
    """Compute forward and backward of a trainer's steps as CUDA graphs; `watch` sees the loss of each.

    Raises: ModelError where its steps are not those of a graph, and why.
    """
    if why := uncaptured(trainer):
        raise ModelError(f"capture: {why}")
    own: Any = trainer
    own.training_step = Capturing(trainer, watch, say).training_step


def uncaptured(trainer: Any) -> str:
    """Return why a trainer's steps cannot be graphs; empty where they can."""
    if not next(trainer.model.parameters()).is_cuda:
        return "the model is not on a CUDA device, and graphs are CUDA's"
    if why := several_processes():
        return why
    if trainer.args.n_gpu > 1:
        return "the trainer parts its batches over several GPUs; show it one, with CUDA_VISIBLE_DEVICES"
    if trainer.accelerator.scaler is not None:
        return "the loss is scaled for float16, by what the step before showed; train in bf16"
    if type(trainer).compute_loss is not Trainer.compute_loss and not getattr(trainer, SUMS, False):
        return (
            f"{type(trainer).__name__} computes a loss of its own; where that is the model's own, divided by "
            f"`num_items_in_batch`, say so: `trainer.{SUMS} = True`"
        )
    if trainer.compute_loss_func or trainer.label_smoother is not None or not trainer.model_accepts_loss_kwargs:
        return "the loss is not the model's own, divided by what all batches of a step learn"
    return ""
