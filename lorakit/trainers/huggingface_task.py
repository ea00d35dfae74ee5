"""Training a Hugging Face language model on text, with transformers' own Trainer and the spec's optimizer."""

from __future__ import annotations

import math
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerState, TrainingArguments

from lorakit.application.optimizer import build_optimizer, keeps_lr
from lorakit.artifacts.adapter_folder import WEIGHTS
from lorakit.artifacts.loading import restore_tensors
from lorakit.compiling.blocks import compile_if_any
from lorakit.data.examples import reasons, require_kept
from lorakit.data.language_model import read_tokenizer, row_limit, vocabulary_of
from lorakit.data.source import Data
from lorakit.data.tokens import Tokenized, split, tokenize
from lorakit.huggingface.record_attention import attention_by_record
from lorakit.processes import ALONE, Processes
from lorakit.reporter import SILENT, Reporter
from lorakit.stepping.shortage import in_words
from lorakit.trainers.answering import answer
from lorakit.trainers.capturing import capture, uncaptured
from lorakit.trainers.checkpoints import STATE, Checkpoints, step_of
from lorakit.trainers.condensed import exact_for
from lorakit.trainers.display import Display
from lorakit.trainers.finite import Finite
from lorakit.trainers.packing import check_apart, check_signature, features, packed
from lorakit.trainers.reports import NO_REPORTS, PLAIN, Reports, logs_of
from lorakit.trainers.schedules import SCHEDULES, chosen
from lorakit.trainers.settings import Outcome, Settings, steps_of
from lorakit.trainers.surviving import survive
from lorakit.trainers.watched_trainer import Collator, FiniteState, Logs, Watch, WatchedTrainer, WeightsToUse
from lorakit.values import ModelReference

# what is counted
UNIT = "tokens"
SAMPLE_TOKENS = 48


class LanguageTask:
    """Text tokenized for one model, ready to train on."""

    is_text = True

    def __init__(
        self,
        model: ModelReference,
        structure: nn.Module,
        data: Data,
        settings: Settings,
        reporter: Reporter = SILENT,
        *,
        held_out: Data | None = None,
    ) -> None:
        """Tokenize the data for a model of this structure; what is held out is drawn from it, or lies apart.

        Raises: DataError, ModelError.
        """
        if settings.pack:
            check_signature(structure)
        self._tokenizer = read_tokenizer(model.text, model.trust_remote_code)
        self._limit = row_limit(structure, settings.tokens)
        self._vocabulary = vocabulary_of(structure)
        self._data, self._apart = data, held_out
        made = self._tokenized(data, reporter)
        self._left_out = (*data.left_out, *made.left_out)
        if held_out is None:
            train, measured = split(made.rows, settings.held_out, settings.seed)
        else:
            train, measured = list(made.rows), list(self._tokenized(held_out, reporter).rows)
        self.rows, self.held_out = Tokenized(tuple(train)), Tokenized(tuple(measured))
        self._packs = packed(train, self._limit) if settings.pack else []
        self.settings = replace(settings, steps=steps_of(settings, len(self._packs or train)))

    def _tokenized(self, data: Data, reporter: Reporter) -> Tokenized:
        made = tokenize(
            data.examples, self._tokenizer, self._limit, self._vocabulary,
            lambda examples: reporter.tracked(examples, "tokenizing"),
        )  # fmt: skip
        left_out = (*data.left_out, *made.left_out)
        require_kept(data.name, len(data.examples) + len(data.left_out), left_out, data.reading.max_left_out)
        return made

    @property
    def description(self) -> str:
        """The data in words."""
        all_there_are = ", all that the model has positions for" if self._limit < self.settings.tokens else ""
        cut = f", {self.rows.cut} cut to {self._limit} tokens{all_there_are}" if self.rows.cut else ""
        left_out = f"\nleft out: {reasons(self._left_out)}" if self._left_out else ""
        apart = f" in {self._apart.name}" if self._apart else ""
        rows = f"{len(self.rows.rows)} rows to train on"
        if self._packs:
            filled = sum(len(row.input_ids) for row in self.rows.rows) / (len(self._packs) * self._limit)
            rows += f", packed into {len(self._packs)} of {self._limit} tokens, {filled:.0%} full"
        return (
            f"{self._data.description}\n"
            f"{rows} ({self.rows.trained_tokens:,} tokens learned an epoch{cut}), "
            f"{len(self.held_out.rows)} held out{apart}; {self.settings.steps} steps of "
            f"{self.settings.rows} rows"
            f"{left_out}"
        )

    def calibration(self, count: int) -> list[dict[str, Tensor]]:
        """Return the first rows of the training data as the model's arguments, each a batch of its own: no padding."""
        rows = self.rows.rows[:count]
        return [{"input_ids": torch.tensor([row.input_ids])} for row in rows]

    @attention_by_record()
    def train(
        self,
        model: nn.Module,
        work: Path,
        display: Display,
        *,
        resume: bool,
        reports: Reports = NO_REPORTS,
        processes: Processes = ALONE,
    ) -> Outcome:
        """Train an adapted model; checkpoints go to `work`, and to resume goes on from the last that is whole there.

        Processes that train together are joined already; each takes its share of every step.

        Raises: ModelError for a model that mixes the records of a packed row, TrainingError where training leaves the
        finite numbers, WriteError where a checkpoint cannot be written and the settings do not say to go on.
        """
        settings = self.settings
        if self._packs:
            check_apart(model, self.rows.rows, self._tokenizer.pad_token_id, settings.batch)
        checkpoints = Checkpoints(work, settings.goes_on, display.warn, processes)
        checkpoint = checkpoints.last() if resume else None
        optimizer = build_optimizer(model)
        finite = Finite(model, optimizer)
        trainer = WatchedTrainer(
            finite,
            checkpoints,
            display.stop,
            exact_for(model, self._vocabulary, self._limit),
            model=model,
            args=_arguments(
                settings,
                work,
                reports,
                measures=bool(self.held_out.rows),
                on_gpu=next(model.parameters()).is_cuda,
                schedule=SCHEDULES[chosen(settings.schedule, keeps_lr(model))],
            ),
            train_dataset=self._features(),
            eval_dataset=[row.features for row in self.held_out.rows] or None,
            processing_class=self._tokenizer,
            data_collator=Collator(self._tokenizer),
            optimizers=(optimizer, None),
        )
        survive(trainer, say=display.warn)
        if settings.capture:
            if why := uncaptured(trainer):
                display.warn(f"not captured: {why}")
            else:
                compile_if_any(model)
                capture(trainer, watch=finite.check_loss, say=display.warn)
        # it prints raw dictionaries
        trainer.remove_callback(PrinterCallback)
        done = step_of(checkpoint) if checkpoint else 0
        watch = Watch(display, display.stop, settings.steps, processes)
        logs = logs_of(reports)
        told = Logs(logs)
        before = self._held_out_loss(trainer, display)
        if checkpoint is None:
            display.held_out(0, before, is_text=True)
            # Trainer forgets when it starts what was logged before
            watch.first = tuple(trainer.state.log_history)
        for callback in (watch, told, WeightsToUse(), FiniteState(finite)):
            trainer.add_callback(callback)
        begun = time.monotonic()
        with display.running(settings.steps, UNIT, done) as stop:
            if checkpoint and done >= settings.steps:
                # Trainer would go a step beyond the end
                restore_tensors(model, load_file(checkpoint / WEIGHTS))
                trainer.state = TrainerState.load_from_json(str(checkpoint / STATE))
                told.on_train_begin(trainer.args, trainer.state, trainer.control)
            else:
                with finite.watching(done), in_words():
                    done = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).global_step
        seconds = time.monotonic() - begun
        stopped = stop.signal if done < settings.steps else 0
        # Trainer itself measures after the last step, where it measures on the way
        last = next((one for one in reversed(trainer.state.log_history) if "eval_loss" in one), {"step": 0})
        if stopped:
            after = None
        elif last["step"] == done:
            after = _finite(last["eval_loss"])
        else:
            after = self._held_out_loss(trainer, display)
        if not stopped:
            display.held_out(done, after, is_text=True)
        for log in logs:
            log.close()
        model.eval()
        return Outcome(before, after, done, stopped, tuple(trainer.state.log_history), watch.seen, UNIT, seconds)

    def _features(self) -> list[dict[str, list[int]]]:
        return [features(pack) for pack in self._packs] or [row.features for row in self.rows.rows]

    def answer(self, model: nn.Module, prompt: str) -> str:
        """Return the model's most likely continuation of a prompt, as a chat turn where the model knows chats."""
        turns = [{"role": "user", "content": prompt}]
        return answer(model, self._tokenizer, turns, max_tokens=SAMPLE_TOKENS)

    def save_beside(self, folder: Path) -> None:
        """Put the tokenizer into an adapter folder, where inference servers look for it."""
        self._tokenizer.save_pretrained(folder)

    def _held_out_loss(self, trainer: Trainer, display: Display) -> float | None:
        if not self.held_out.rows:
            return None
        with display.busy("measuring the held-out loss"):
            return _finite(trainer.evaluate()["eval_loss"])


def _finite(loss: float) -> float:
    return float(loss) if math.isfinite(loss) else math.inf


def _arguments(
    settings: Settings, work: Path, reports: Reports, *, measures: bool, on_gpu: bool, schedule: str
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(work),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        per_device_eval_batch_size=settings.batch,
        gradient_accumulation_steps=settings.accumulate,
        lr_scheduler_type=schedule,
        warmup_steps=settings.warmup,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        data_seed=settings.seed,
        save_strategy="steps" if settings.save_every else "no",
        save_steps=settings.save_every or settings.steps,
        eval_strategy="steps" if settings.evaluate_every and measures else "no",
        eval_steps=settings.evaluate_every or settings.steps,
        logging_steps=1,
        disable_tqdm=True,
        report_to=[name for name in reports.names if name not in PLAIN] or "none",
        run_name=reports.run or None,
        dataloader_pin_memory=on_gpu,
        # Trainer takes a process without a GPU for one that is alone otherwise
        use_cpu=settings.processes > 1 and not on_gpu,
        include_num_input_tokens_seen="non_padding",
        **_checkpointing(settings),
    )


def _checkpointing(settings: Settings) -> dict[str, Any]:
    """Return the argument that turns recomputing on, under the name that this transformers knows."""
    if not settings.gradient_checkpointing:
        return {}
    known = {field.name for field in fields(TrainingArguments)}
    return {"activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing": True}
