"""transformers' Trainer with what a run needs of it: looks at each loss, whole checkpoints, a word on each step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback

from lorakit.processes import Processes
from lorakit.stepping.head import HeadByChunks
from lorakit.trainers.checkpoints import Checkpoints
from lorakit.trainers.condensed import Condense, as_it_is
from lorakit.trainers.display import Display, StopAsked
from lorakit.trainers.finite import Finite
from lorakit.trainers.modes import to_evaluation
from lorakit.trainers.packing import collate
from lorakit.trainers.reports import Log
from lorakit.trainers.settings import Record


class WatchedTrainer(Trainer):
    """transformers' Trainer, but that it looks at each loss and its gradients, and writes checkpoints aside first.

    A model gets its batches condensed, and gives its loss by chunks where its logits are many.
    """

    loss_is_summed = True

    def __init__(
        self, finite: Finite, checkpoints: Checkpoints, stop: StopAsked, condense: Condense, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        # DataParallel sends a share of the rows to each device
        self._condense = condense if self.args.n_gpu <= 1 else as_it_is
        model: Any = self.model
        self._head = HeadByChunks(model)
        self._finite = finite
        self._checkpoints = checkpoints
        self._stop = stop
        self._aside: Path | None = None

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        self._finite.check_loss(loss)
        return loss

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        with self._head.standing():
            return super().compute_loss(model, self._condense(inputs), *args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        def fill(folder: Path) -> None:
            # Trainer itself adds the name
            self._aside = folder.parent
            super(WatchedTrainer, self)._save_checkpoint(*args, **kwargs)

        try:
            self._checkpoints.write(self.state.global_step, fill, needed=bool(self._stop.signal))
        finally:
            self._aside = None

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self._aside or super()._get_output_dir(trial))


class FiniteState(TrainerCallback):
    """Looks at what the optimizer keeps before a checkpoint is written."""

    def __init__(self, finite: Finite) -> None:
        self._finite = finite

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_save:
            self._finite.check_state()


class Watch(TrainerCallback):
    """Tells the display what happens, and ends training with a checkpoint where any process was asked to stop.

    `first` is what was logged before training.
    """

    def __init__(self, display: Display, stop: StopAsked, steps: int, processes: Processes) -> None:
        self._display = display
        self._stop = stop
        self._steps = steps
        self._processes = processes
        self.first: tuple[Record, ...] = ()
        self._before = 0
        # tokens since the start, without padding
        self.seen = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.log_history[:0] = self.first
        self._before = state.num_input_tokens_seen

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        self.seen = state.num_input_tokens_seen - self._before
        if logs and "loss" in logs:
            self._display.step(state.global_step, float(logs["loss"]), float(logs["learning_rate"]), self.seen)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        if metrics and 0 < state.global_step < self._steps:
            self._display.held_out(state.global_step, float(metrics["eval_loss"]), is_text=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._stop.signal = self._processes.largest(self._stop.signal)
        if self._stop.signal:
            control.should_save = True
            control.should_training_stop = True


class Logs(TrainerCallback):
    """Hands records on to logs, from the first that Trainer keeps."""

    def __init__(self, logs: Sequence[Log]) -> None:
        self._logs = logs

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for log in self._logs:
            log.begin(state.log_history)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        for log in self._logs:
            log.add({**(logs or {}), "step": state.global_step})


class Collator:
    """Batches of packed rows, and of rows of their own."""

    def __init__(self, tokenizer: Any) -> None:
        self._pad = tokenizer.pad_token_id
        self._padded = DataCollatorForSeq2Seq(tokenizer, padding=True)

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> Any:
        return collate(rows, self._pad) if "position_ids" in rows[0] else self._padded(rows)


class WeightsToUse(TrainerCallback):
    """Has an optimizer with two sets of weights leave those to be used in checkpoints and at the end.

    Trainer itself switches before steps and before evaluations.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        if control.should_save:
            to_evaluation(optimizer)

    def on_train_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        to_evaluation(optimizer)
