"""transformers' Trainer, and those made of it, with steps that are finished where memory runs out on the way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

from accelerate import DistributedType
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from transformers import Trainer, TrainerCallback

from lorakit.stepping.ladder import Climb, Ladder
from lorakit.stepping.losses import OwnLoss, refused, several_processes
from lorakit.stepping.shortage import retried
from lorakit.stepping.step import ADVICE, resumable, undone
from lorakit.trainers.counted import uncounted
from lorakit.trainers.needs import Needs

logger = logging.getLogger("lorakit")
# what a trainer with a `compute_loss` of its own says where that is still a sum over tokens
SUMS = "loss_is_summed"


class Survivor(TrainerCallback):
    """Stands around the steps of one trainer, tries the longest rows before the first, and logs what steps needed."""

    def __init__(self, trainer: Trainer, say: Callable[[str], None]) -> None:
        self.longest_first, self.say = True, say
        self._trainer: Any = trainer
        model: Any = trainer.model
        self._step, self._create = trainer.training_step, trainer.create_optimizer
        self._clip = trainer.accelerator.clip_grad_norm_
        self._learning = OwnLoss(model)
        self._items: Any = None
        self._refused = several_processes()
        self._ladder = Ladder(
            model,
            self._whole,
            refused=self._refused,
            page_out=lambda: _page_out(trainer.optimizer),
            advice=ADVICE,
            say=lambda line: self.say(line),
        )
        self._needs = Needs(self.climbs, lambda: trainer.optimizer)

    @property
    def climbs(self) -> Sequence[Climb]:
        """What was needed so far where memory ran out, in order."""
        return self._ladder.climbs

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Do what the trainer's own does, as often as it takes."""
        self._items = num_items_in_batch

        def run(batch: Any, share: float) -> Tensor:
            # each part is divided by what the whole holds already
            by_chunks = self._learning.head.standing() if self._takes_the_loss_alone else nullcontext()
            with uncounted(self._trainer), by_chunks:
                loss: Tensor = self._step(model, dict(batch), num_items_in_batch)
            return loss

        loss: Tensor = self._ladder.take(inputs, run, self._learning.count)
        return loss

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Have the trainer's optimizer go on where its step ran out of memory, before a schedule knows it."""
        made = self._create(*args, **kwargs)
        # FSDP and DeepSpeed put other parameters in its groups
        is_plain = self._trainer.accelerator.distributed_type == DistributedType.NO
        if is_plain and not isinstance(made, AcceleratedOptimizer):
            made = self._trainer.optimizer = resumable(made)
        return made

    def clip_grad_norm_(self, parameters: Iterable[Tensor], *args: Any, **kwargs: Any) -> Any:
        """Clip as accelerate does, as often as it takes: all that needs memory comes before a gradient changes."""
        trained = list(parameters)
        # a scaler undoes its scale once, and what lies on several devices is scaled one by one
        if self._refused or self._trainer.accelerator.scaler is not None or len({one.device for one in trained}) > 1:
            return self._clip(trained, *args, **kwargs)
        return retried(lambda: self._clip(trained, *args, **kwargs))

    @property
    def _takes_the_loss_alone(self) -> bool:
        """Whether the trainer reads no logits."""
        trainer: Any = self._trainer
        own = type(trainer).compute_loss is Trainer.compute_loss and trainer.compute_loss_func is None
        return own and trainer.label_smoother is None

    def _whole(self) -> str:
        trainer: Any = self._trainer
        if type(trainer).compute_loss is not Trainer.compute_loss and not getattr(trainer, SUMS, False):
            return (
                f"{type(trainer).__name__} computes a loss of its own; where that is a sum over tokens, divided by "
                f"`num_items_in_batch`, say so: `trainer.{SUMS} = True`"
            )
        divided = self._items is not None and (trainer.model_accepts_loss_kwargs or trainer.compute_loss_func)
        if not divided or trainer.label_smoother is not None:
            return "the loss is not a sum over tokens, divided by those of all batches"
        return refused(trainer.model, self._learning)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.longest_first and (rows := longest(self._trainer.train_dataset, state.train_batch_size)):
            with undone(self._trainer.model), uncounted(self._trainer, always=True):
                batch = self._trainer.data_collator(rows)
                _, items = self._trainer.get_batch_samples(iter([batch]), 1, args.device)
                self._trainer.training_step(self._trainer.model_wrapped, batch, items)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs is not None and "loss" in logs:
            record = self._needs.since()
            logs |= record
            state.log_history[-1] |= record


def survive(trainer: Trainer, *, longest_first: bool = True, say: Callable[[str], None] = logger.warning) -> Survivor:
    """Have a trainer finish the steps in which memory runs out, and try its longest rows before the first step.

    A trainer that reads no logits has them computed by chunks of rows, where they are many.

    One that does already keeps its survivor, which is told what is asked for now.
    """
    own: Any = trainer
    known = [one for one in own.callback_handler.callbacks if isinstance(one, Survivor)]
    survivor = known[0] if known else Survivor(trainer, say)
    survivor.longest_first, survivor.say = longest_first, say
    if not known:
        own.training_step, own.create_optimizer = survivor.training_step, survivor.create_optimizer
        own.accelerator.clip_grad_norm_ = survivor.clip_grad_norm_
        # before those that hand records on
        own.callback_handler.callbacks.insert(0, survivor)
    return survivor


def longest(rows: Any, count: int) -> list[Any]:
    """Return so many of the rows that have the most tokens, the longest first; none where rows have no `input_ids`."""
    if not hasattr(rows, "__len__") or not len(rows) or "input_ids" not in rows[0]:
        return []
    lengths = [len(row["input_ids"]) for row in rows]
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    return [rows[index] for index in order[:count]]


def _page_out(optimizer: Any) -> int:
    """Have an optimizer send its state to the CPU's memory, also one that accelerate wraps; return the bytes."""
    page_out = getattr(getattr(optimizer, "optimizer", optimizer), "page_out", None)
    return page_out() if page_out is not None else 0
