"""`lorakit.Step`: one training step of a plain loop, finished where memory runs out on the way, captured if asked."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from lorakit.application.sharding import is_parallel, is_unit
from lorakit.errors import ModelError
from lorakit.paging import Paged
from lorakit.stepping.before import Before
from lorakit.stepping.captured import Captured
from lorakit.stepping.ladder import Climb, Ladder
from lorakit.stepping.losses import Learning, learning_of, refused, several_processes
from lorakit.stepping.shortage import retried

logger = logging.getLogger("lorakit")
ADVICE = (
    "Give it fewer rows or shorter ones (`step batch N tokens N`), compute blocks again in the backward pass (gradient "
    "checkpointing), or store more of the model in four bits (`quantize @linear nf4 double`)."
)


class Step:
    """Forward, loss, backward and update of a model, with the loss's gradients clipped at `max_grad_norm` (0: never).

    A batch is a mapping of the model's arguments, which has it give a loss of its own, or, with a `loss` of output and
    target that is a mean over rows, an (inputs, targets) pair. Several batches are one step: the mean over all that
    counts in them. Where memory runs out the step is done again in ways that need less, all of which but the last, to
    split a batch, give the same bits; `climbs` says which were needed. `watch` sees each loss after its backward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[Any, Any], Tensor] | Learning | None = None,
        *,
        max_grad_norm: float = 0.0,
        watch: Callable[[Tensor], None] = lambda loss: None,
        advice: str = ADVICE,
        say: Callable[[str], None] = logger.warning,
    ) -> None:
        alone = not several_processes()
        self.model, self.optimizer = model, resumable(optimizer) if alone else optimizer
        self._learning = learning_of(model, loss)
        self._max_grad_norm = max_grad_norm or math.inf
        self._watch = watch
        self._say = say
        self._captured: Captured | None = None
        self._ladder = Ladder(
            model,
            lambda: refused(model, self._learning),
            refused=several_processes(),
            page_out=getattr(self.optimizer, "page_out", None),
            advice=advice,
            say=say,
        )

    @property
    def climbs(self) -> Sequence[Climb]:
        """What was needed so far where memory ran out, in order."""
        return self._ladder.climbs

    def capture(self) -> Self:
        """Compute forward and backward of a batch as one CUDA graph from now on, and return this step.

        Each form of a batch is captured when it first comes: text is padded to one of a few lengths, without a change
        of its loss, and after that the host does next to nothing. Layers that `module.compile()` compiled are captured
        so; hooks run at the capture alone. What cannot be captured, since it waits for the device or memory is short,
        is said and computed as ever. Gradients are clipped and the optimizer steps outside of the graph, so that any
        does, paged or not. Give batches in CPU memory: to count what is learned in one that lies on the device, the
        device is waited for. Raises: ModelError where the model is not on a CUDA device.
        """
        if not next(self.model.parameters()).is_cuda:
            raise ModelError("capture: the model is not on a CUDA device, and graphs are CUDA's; move it there before")
        if (unit := next((one for one in self.model.modules() if is_unit(one) or is_parallel(one)), None)) is not None:
            raise ModelError(
                f"capture: a {type(unit).__name__} talks to other processes in forward and backward, which no graph "
                "holds; leave out `capture`"
            )
        self._captured = Captured(self.model, self._learning, self._say)
        return self

    def __call__(self, *batches: Any) -> Tensor:
        """Do one step on one batch or several, and return the loss. Raises: what ran out, where nothing helps.

        The loss is a tensor of one number on the device, which is waited for where the number is read.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.learn(*batches)
        self.update()
        return loss

    def learn(self, *batches: Any) -> Tensor:
        """Add the gradients of the mean loss over batches, and return that loss, as a tensor of one number."""
        counts = retried(lambda: [self._learning.count(one) for one in batches])
        total = sum(counts)
        losses = [
            self._taken(batch, count / total)
            for batch, count in zip(batches, counts, strict=True)
            # where nothing counts the mean is of nothing
            if count
        ]
        return retried(lambda: sum(losses[1:], losses[0])) if losses else torch.zeros(())

    def update(self) -> Tensor:
        """Clip the gradients, step the optimizer, and return the norm that they had, as a tensor of one number."""
        trained = [one for group in self.optimizer.param_groups for one in group["params"]]
        norm = clipped([one.grad for one in trained if one.grad is not None], self._max_grad_norm)
        if isinstance(self.optimizer, Paged):
            retried(self.optimizer.step)
        else:
            self.optimizer.step()
        return norm

    def rehearse(self, batch: Any) -> None:
        """Compute a batch and undo all of it: one that is too large fails now, and what it needs is known."""
        with undone(self.model):
            self.learn(batch)

    def _taken(self, batch: Any, share: float) -> Tensor:
        loss = self._captured.take(batch, share) if self._captured is not None else None
        if loss is None:
            taken: Tensor = self._ladder.take(batch, self._run, self._learning.count, share)
            return taken
        self._watch(loss)
        return loss

    def _run(self, batch: Any, share: float) -> Tensor:
        loss = self._learning.loss(self.model, batch) * share
        loss.backward()
        self._watch(loss)
        return loss.detach()


def clipped(gradients: Sequence[Tensor], limit: float) -> Tensor:
    """Scale gradients to a norm of at most `limit`, as torch's `clip_grad_norm_` does, and return the norm.

    What needs memory is done before the first of them changes.
    """
    norm = retried(lambda: torch.nn.utils.get_total_norm(gradients))
    if math.isfinite(limit):
        by_device: dict[torch.device, list[Tensor]] = {}
        for gradient in gradients:
            by_device.setdefault(gradient.device, []).append(gradient)
        shares = retried(lambda: {one: torch.clamp(limit / (norm + 1e-6), max=1.0).to(one) for one in by_device})
        for device, alike in by_device.items():
            torch._foreach_mul_(alike, shares[device])
    return norm


def resumable(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return an optimizer whose step goes on where memory ran out on its way, if it takes parameters one by one."""
    if isinstance(optimizer, Paged):
        return optimizer
    try:
        return Paged(optimizer, parameters=())
    except ModelError:
        return optimizer


@contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """Have gradients, buffers and generators after the block as they were before it."""
    before = Before.of(model)
    try:
        yield
    finally:
        before.restore()
