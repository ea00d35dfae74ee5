"""How a batch becomes a loss: what a model returns itself, or a function of its output and a target."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lorakit.application.batches import moved
from lorakit.errors import ModelError
from lorakit.stepping.batches import learned, weight_of
from lorakit.stepping.head import HeadByChunks


@runtime_checkable
class Learning(Protocol):
    """How a model's loss comes of a batch; a loss is the mean of what counts in it."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor: ...

    def count(self, batch: Any) -> int:
        """Return how much of a batch counts in the mean."""

    def whole(self) -> str:
        """Return why a batch cannot be learned from in parts; empty where it can."""


@dataclass(frozen=True, slots=True)
class PairLoss:
    """The loss of (inputs, targets) pairs, by a function of output and target that is a mean over rows."""

    of: Callable[[Any, Any], Tensor]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        inputs, targets = batch
        device = next(model.parameters()).device
        return self.of(model(moved(inputs, device)), moved(targets, device))

    def count(self, batch: Any) -> int:
        return weight_of(batch)

    def whole(self) -> str:
        return ""


# what a loss of transformers, by the name that a model gives it, is a mean over: labels, the first of each row being
# predicted from nothing where they are shifted, or rows
LOSSES: Mapping[str, Callable[[Tensor], int]] = {
    "ForCausalLM": lambda labels: learned(labels, shifted=True),
    "ForMaskedLM": lambda labels: learned(labels, shifted=False),
    "ForTokenClassification": lambda labels: learned(labels, shifted=False),
    "ForSequenceClassification": len,
}


@dataclass(frozen=True, slots=True)
class OwnLoss:
    """The loss that a model of transformers computes from `labels`, its logits by chunks where they are many."""

    model: Any
    head: HeadByChunks = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "head", HeadByChunks(self.model))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        device = next(model.parameters()).device
        given = {name: moved(value, device) for name, value in batch.items()}
        if self._caches:
            # what a next token would be asked with is of no use here, and a block compiled for one is of that one alone
            given = {"use_cache": False, **given}
        with self.head.standing():
            loss = getattr(model(**given), "loss", None)
        if not isinstance(loss, Tensor):
            raise ModelError("the model gives no loss for this batch: give it `labels`, or Step a `loss` of its own")
        return loss

    def count(self, batch: Any) -> int:
        counted = LOSSES.get(self._name)
        labels = batch.get("labels")
        return counted(labels) if counted and isinstance(labels, Tensor) else weight_of(batch)

    def whole(self) -> str:
        config = getattr(self.model, "config", None)
        if self._name not in LOSSES:
            return f"its loss, {self._name or 'of no known name'}, is not known to be a mean over rows or tokens"
        if getattr(config, "output_router_logits", False):
            return "its loss holds one over the routers of all rows together"
        return ""

    @property
    def _caches(self) -> bool:
        config = getattr(self.model, "config", None)
        return bool(getattr(config, "use_cache", False)) and _takes_cache(type(self.model).forward)

    @property
    def _name(self) -> str:
        return str(getattr(self.model, "loss_type", None) or "")


@functools.cache
def _takes_cache(forward: Callable[..., Any]) -> bool:
    return "use_cache" in inspect.signature(forward).parameters


def refused(model: nn.Module, learning: Learning, *, training: bool = False) -> str:
    """Return why a batch of a model cannot be split, as far as its modules tell: in parts it would be another step.

    They are looked at as they are, or as they will be in `training`.
    """
    if why := learning.whole():
        return why
    for path, module in model.named_modules():
        if not (module.training or training):
            continue
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return f"`{path}` norms a batch by its own statistics"
        p = module.p if isinstance(module, nn.modules.dropout._DropoutNd) else vars(module).get("dropout")
        if isinstance(p, float) and p > 0:
            return f"the dropout of `{path}` draws otherwise for parts of a batch than for the whole"
    return ""


def several_processes() -> str:
    """Return why no step is tried again where several processes train together: the others would wait."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        count = torch.distributed.get_world_size()
    else:
        # of a process that torchrun or accelerate started, and that knows nothing of the others yet
        count = int(os.environ.get("WORLD_SIZE") or 1)
    if count > 1:
        return "several processes train together, and the others would wait for one that tries again"
    return ""


def learning_of(model: nn.Module, loss: Callable[[Any, Any], Tensor] | Learning | None) -> Learning:
    """Return how a model learns: by a function of output and target, as said, or by the loss that it gives itself."""
    if loss is None:
        return OwnLoss(model)
    return loss if isinstance(loss, Learning) else PairLoss(loss)
