"""Training a Hugging Face language model on text, with transformers' own Trainer and the spec's optimizer."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lorakit.application.optimizer import build_optimizer, keeps_lr
from lorakit.artifacts.adapter_folder import WEIGHTS
from lorakit.artifacts.loading import restore_tensors
from lorakit.data.examples import reasons, require_kept
from lorakit.data.language_model import read_tokenizer, row_limit, vocabulary_of
from lorakit.data.source import Data
from lorakit.data.tokens import Tokenized, split, tokenize
from lorakit.reporter import SILENT, Reporter
from lorakit.trainers.checkpoints import Checkpoints, step_of
from lorakit.trainers.display import Display, StopAsked
from lorakit.trainers.finite import Finite
from lorakit.trainers.modes import to_evaluation
from lorakit.trainers.settings import Outcome, Settings
from lorakit.values import ModelReference

SAMPLE_TOKENS = 48


class LanguageTask:
    """Text tokenized for one model, ready to train on."""

    def __init__(
        self, model: ModelReference, structure: nn.Module, data: Data, settings: Settings, reporter: Reporter = SILENT
    ) -> None:
        """Tokenize the data for a model of this structure. Raises: DataError, ModelError."""
        self._tokenizer = read_tokenizer(model.text, model.trust_remote_code)
        self._limit = row_limit(structure, settings.tokens)
        made = tokenize(
            data.examples, self._tokenizer, self._limit, vocabulary_of(structure),
            lambda examples: reporter.tracked(examples, "tokenizing"),
        )  # fmt: skip
        self._data, self._left_out = data, (*data.left_out, *made.left_out)
        total = len(data.examples) + len(data.left_out)
        require_kept(data.name, total, self._left_out, data.reading.max_left_out)
        train, held_out = split(made.rows, settings.held_out, settings.seed)
        self.rows, self.held_out = Tokenized(tuple(train)), Tokenized(tuple(held_out))
        steps = settings.steps or math.ceil(settings.epochs * len(self.rows.rows) / settings.batch)
        self.settings = replace(settings, steps=steps)

    @property
    def description(self) -> str:
        """The data in words."""
        all_there_are = ", all that the model has positions for" if self._limit < self.settings.tokens else ""
        cut = f", {self.rows.cut} cut to {self._limit} tokens{all_there_are}" if self.rows.cut else ""
        left_out = f"\nleft out: {reasons(self._left_out)}" if self._left_out else ""
        return (
            f"{self._data.description}\n"
            f"{len(self.rows.rows)} rows to train on ({self.rows.trained_tokens:,} tokens learned an epoch{cut}), "
            f"{len(self.held_out.rows)} held out; {self.settings.steps} steps of {self.settings.batch} rows"
            f"{left_out}"
        )

    def calibration(self, count: int) -> list[dict[str, Tensor]]:
        """Return the first rows of the training data as the model's arguments, each a batch of its own: no padding."""
        rows = self.rows.rows[:count]
        return [{"input_ids": torch.tensor([row.input_ids])} for row in rows]

    def train(self, model: nn.Module, work: Path, display: Display, *, resume: bool) -> Outcome:
        """Train an adapted model; checkpoints go to `work`, and to resume goes on from the last that is whole there.

        Raises: TrainingError where training leaves the finite numbers, WriteError where a checkpoint cannot be written
        and the settings do not say to go on.
        """
        checkpoints = Checkpoints(work, self.settings.goes_on, display.warn)
        checkpoint = checkpoints.last() if resume else None
        optimizer = build_optimizer(model, self.settings.lr)
        finite = Finite(model, optimizer)
        trainer = _Trainer(
            finite,
            checkpoints,
            display.stop,
            model=model,
            args=_arguments(
                self.settings,
                work,
                measures=bool(self.held_out.rows),
                on_gpu=next(model.parameters()).is_cuda,
                schedule="constant_with_warmup" if keeps_lr(model) else "linear",
            ),
            train_dataset=[row.features for row in self.rows.rows],
            eval_dataset=[row.features for row in self.held_out.rows] or None,
            processing_class=self._tokenizer,
            data_collator=DataCollatorForSeq2Seq(self._tokenizer, padding=True),
            optimizers=(optimizer, None),
        )
        # it prints raw dictionaries
        trainer.remove_callback(PrinterCallback)
        before = self._held_out_loss(trainer, display)
        if checkpoint is None:
            display.held_out(0, before)
        with display.running(self.settings.steps) as stop:
            trainer.add_callback(_Watch(display, stop, self.settings.steps))
            trainer.add_callback(_WeightsToUse())
            trainer.add_callback(_FiniteState(finite))
            done = step_of(checkpoint) if checkpoint else 0
            if checkpoint and done >= self.settings.steps:
                # Trainer would go a step beyond the end
                restore_tensors(model, load_file(checkpoint / WEIGHTS))
            else:
                with finite.watching(done):
                    done = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).global_step
        stopped = stop.signal if done < self.settings.steps else 0
        after = None if stopped else self._held_out_loss(trainer, display)
        if not stopped:
            display.held_out(done, after)
        model.eval()
        return Outcome(before, after, done, stopped)

    def answer(self, model: nn.Module, prompt: str) -> str:
        """Return the model's most likely continuation of a prompt, as a chat turn where the model knows chats."""
        if getattr(self._tokenizer, "chat_template", None):
            turns = [{"role": "user", "content": prompt}]
            inputs = self._tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            inputs = self._tokenizer(prompt, return_tensors="pt")
        inputs = inputs.to(next(model.parameters()).device)
        was_training = model.training
        model.eval()
        ids = model.generate(  # type: ignore[operator]
            **inputs, max_new_tokens=SAMPLE_TOKENS, do_sample=False, pad_token_id=self._tokenizer.pad_token_id
        )
        model.train(was_training)
        text: str = self._tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return text.strip()

    def save_beside(self, folder: Path) -> None:
        """Put the tokenizer into an adapter folder, where inference servers look for it."""
        self._tokenizer.save_pretrained(folder)

    def _held_out_loss(self, trainer: Trainer, display: Display) -> float | None:
        if not self.held_out.rows:
            return None
        with display.busy("measuring the held-out loss"):
            loss = float(trainer.evaluate()["eval_loss"])
        return loss if math.isfinite(loss) else math.inf


def _arguments(settings: Settings, work: Path, *, measures: bool, on_gpu: bool, schedule: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(work),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        per_device_eval_batch_size=settings.batch,
        lr_scheduler_type=schedule,
        warmup_steps=settings.warmup,
        seed=settings.seed,
        data_seed=settings.seed,
        save_strategy="steps" if settings.save_every else "no",
        save_steps=settings.save_every or settings.steps,
        eval_strategy="steps" if settings.evaluate_every and measures else "no",
        eval_steps=settings.evaluate_every or settings.steps,
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=on_gpu,
        **_checkpointing(settings),
    )


def _checkpointing(settings: Settings) -> dict[str, Any]:
    """Return the argument that turns recomputing on, under the name that this transformers knows."""
    if not settings.gradient_checkpointing:
        return {}
    known = {field.name for field in fields(TrainingArguments)}
    return {"activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing": True}


class _Trainer(Trainer):
    """transformers' Trainer, but that it looks at each loss and its gradients, and writes checkpoints aside first."""

    def __init__(self, finite: Finite, checkpoints: Checkpoints, stop: StopAsked, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._finite = finite
        self._checkpoints = checkpoints
        self._stop = stop
        self._aside: Path | None = None

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        self._finite.check_loss(loss)
        return loss

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        def fill(folder: Path) -> None:
            # Trainer itself adds the name
            self._aside = folder.parent
            super(_Trainer, self)._save_checkpoint(*args, **kwargs)

        try:
            self._checkpoints.write(self.state.global_step, fill, needed=bool(self._stop.signal))
        finally:
            self._aside = None

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self._aside or super()._get_output_dir(trial))


class _FiniteState(TrainerCallback):
    """Looks at what the optimizer keeps before a checkpoint is written."""

    def __init__(self, finite: Finite) -> None:
        self._finite = finite

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_save:
            self._finite.check_state()


class _Watch(TrainerCallback):
    """Tells the display what happens, and ends training with a checkpoint where the user asked to stop."""

    def __init__(self, display: Display, stop: StopAsked, steps: int) -> None:
        self._display = display
        self._stop = stop
        self._steps = steps

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self._display.step(state.global_step, float(logs["loss"]))

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        if metrics and 0 < state.global_step < self._steps:
            self._display.held_out(state.global_step, float(metrics["eval_loss"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._stop.signal:
            control.should_save = True
            control.should_training_stop = True


class _WeightsToUse(TrainerCallback):
    """Has an optimizer with two sets of weights leave those to be used in checkpoints and at the end.

    Trainer itself switches before steps and before evaluations.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        if control.should_save:
            to_evaluation(optimizer)

    def on_train_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        to_evaluation(optimizer)
