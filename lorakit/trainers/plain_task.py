"""Training a plain PyTorch model: a loop of forward, loss, backward and step, with checkpoints that resume."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from lorakit.application.batches import moved
from lorakit.application.optimizer import build_optimizer, keeps_lr
from lorakit.compiling.blocks import compile_if_any
from lorakit.errors import DataError
from lorakit.named_objects import named_object
from lorakit.processes import ALONE, Processes
from lorakit.stepping.batches import elements_of
from lorakit.stepping.losses import PairLoss
from lorakit.stepping.shortage import in_words, is_shortage
from lorakit.stepping.step import Step, resumable
from lorakit.trainers.checkpoints import Checkpoints
from lorakit.trainers.display import Display
from lorakit.trainers.finite import Finite
from lorakit.trainers.generators import restore_generators
from lorakit.trainers.history import History
from lorakit.trainers.modes import to_evaluation, to_training
from lorakit.trainers.needs import Needs
from lorakit.trainers.plain_checkpoints import Start, read_checkpoint, write_checkpoint
from lorakit.trainers.plain_settings import check_settings
from lorakit.trainers.reports import NO_REPORTS, Reports, check_reports, logs_of
from lorakit.trainers.schedules import chosen, share
from lorakit.trainers.settings import Outcome, Settings, steps_of, steps_of_epoch

# what is counted
UNIT = "rows"
Loss = Callable[[Any, Any], Tensor]
Pair = tuple[Any, Any]


def default_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return cross-entropy over the last dimension for whole-number targets, the mean squared error for any other."""
    if target.dtype in (torch.int64, torch.int32):
        return functional.cross_entropy(output.reshape(-1, output.shape[-1]).float(), target.reshape(-1).long())
    return functional.mse_loss(output, target)


class PairsTask:
    """(input, target) pairs for one model, ready to train on."""

    is_text = False

    def __init__(self, data: str, loss: str | None, settings: Settings, *, held_out: str | None = None) -> None:
        """Make the pairs and find the loss; what is held out is drawn from them, or made apart.

        Raises: DataError.
        """
        check_settings(settings)
        pairs = _pairs(data)
        self._loss_of: Loss = named_object(loss, "loss") if loss else default_loss
        count = max(1, round(len(pairs) * settings.held_out)) if settings.held_out and held_out is None else 0
        if len(pairs) <= count:
            raise DataError(f"{len(pairs)} pairs are too few to hold {settings.held_out:.0%} of them out")
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(settings.seed)).tolist()
        drawn = [pairs[index] for index in order[:count]]
        self._data, self._apart = data, held_out
        self._held_out: Sequence[Pair] = drawn if held_out is None else _pairs(held_out)
        self._pairs = [pairs[index] for index in order[count:]]
        self.settings = replace(settings, steps=steps_of(settings, len(self._pairs)))

    @property
    def description(self) -> str:
        """The data in words."""
        apart = f" by {self._apart}" if self._apart else ""
        return (
            f"{self._data}: {len(self._pairs)} pairs to train on, {len(self._held_out)} held out{apart}; "
            f"{self.settings.steps} steps of {self.settings.rows} pairs"
        )

    def calibration(self, count: int) -> list[tuple[Any]]:
        """Return the inputs of the first training pairs as the model's arguments, each a batch of its own."""
        return [(inputs,) for inputs, _ in DataLoader(self._pairs[:count])]  # type: ignore[arg-type]

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

        Processes that train together are joined already; each takes its share of every step's batches.

        Raises: DataError if a pair does not fit the model, TrainingError where training leaves the finite numbers,
        WriteError where a checkpoint cannot be written and the settings do not say to go on.
        """
        check_reports(reports.names, is_plain=True)
        settings = self.settings
        optimizer = resumable(build_optimizer(model))
        base_rates = [group["lr"] for group in optimizer.param_groups]
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        schedule = chosen(settings.schedule, keeps_lr(model))
        # what dropout draws is the seed's, for each process other, and goes on after a checkpoint where it stood
        torch.manual_seed(settings.seed + processes.rank)
        checkpoints = Checkpoints(work, settings.goes_on, display.warn, processes)
        checkpoint = checkpoints.last() if resume else None
        start = read_checkpoint(model, optimizer, checkpoint, processes.rank) if checkpoint else Start()
        done, count = start.step, 0
        before = self._held_out_loss(model, processes)
        history = History(start.history, logs_of(reports), self._pace)
        if checkpoint is None:
            display.held_out(0, before, is_text=False)
            history.add(0, eval_loss=before)
        model.train()
        finite = Finite(model, optimizer)
        step = Step(
            model, optimizer, Checked(self._loss_of), max_grad_norm=settings.max_grad_norm, watch=finite.check_loss,
            say=display.warn,
        )  # fmt: skip
        if settings.capture and next(model.parameters()).is_cuda:
            compile_if_any(model)
            step.capture()
        needs = Needs(step.climbs, lambda: optimizer)
        with display.running(settings.steps, UNIT, done) as stop, finite.watching(done), in_words():
            if done < settings.steps:
                step.rehearse(self._longest())
            steps = _steps(self._pairs, settings, done, start.drawn, processes) if done < settings.steps else ()
            for batches in steps:
                factor = share(schedule, done, settings.steps, settings.warmup)
                for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                    group["lr"] = rate * factor
                to_training(optimizer)
                optimizer.zero_grad(set_to_none=True)
                loss = float(step.learn(*batches))
                own = sum(map(_size, batches))
                # each has the mean over its own rows
                loss, rows = processes.sums(loss * own, own)
                loss /= rows
                processes.add_gradients(trained, own / rows)
                norm = float(step.update())
                done += 1
                count += int(rows)
                stop.signal = processes.largest(stop.signal)
                lr = optimizer.param_groups[0]["lr"]
                history.add(done, loss=loss, grad_norm=norm, learning_rate=lr, **needs.since())
                display.step(done, loss, lr, count)
                if _due(done, settings.evaluate_every, settings):
                    to_evaluation(optimizer)
                    held_out = self._held_out_loss(model, processes)
                    display.held_out(done, held_out, is_text=False)
                    history.add(done, eval_loss=held_out)
                ends = bool(stop.signal) and done < settings.steps
                if ends or _due(done, settings.save_every, settings):
                    to_evaluation(optimizer)
                    finite.check_state()
                    fill = functools.partial(
                        write_checkpoint, model, optimizer, done, history.records,
                        rank=processes.rank, count=processes.count,
                    )  # fmt: skip
                    checkpoints.write(done, fill, needed=ends)
                if done >= settings.steps or ends:
                    break
        seconds = history.seconds
        to_evaluation(optimizer)
        stopped = stop.signal if done < settings.steps else 0
        after = None if stopped else self._held_out_loss(model, processes)
        if not stopped:
            display.held_out(done, after, is_text=False)
            history.add(done, eval_loss=after)
        history.close()
        model.eval()
        return Outcome(before, after, done, stopped, tuple(history.records), count, UNIT, seconds)

    @property
    def _pace(self) -> float:
        """Epochs a step."""
        batches = -(-len(self._pairs) // self.settings.batch)
        return self.settings.accumulate * self.settings.processes / batches

    def answer(self, model: nn.Module, prompt: str) -> str:
        """A plain model has no prompt to answer. Raises: DataError."""
        raise DataError("a sample can be shown for Hugging Face language models alone")

    def save_beside(self, folder: Path) -> None:
        """A plain model has nothing to put beside its adapter."""

    def _longest(self) -> Pair:
        """Return the batch of pairs that has the most elements."""
        sizes = [elements_of(pair) for pair in self._pairs]
        order = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)
        rows = [self._pairs[index] for index in order[: self.settings.batch]]
        batch: Pair = next(iter(DataLoader(rows, len(rows))))  # type: ignore[arg-type]
        return batch

    def _held_out_loss(self, model: nn.Module, processes: Processes) -> float | None:
        if not self._held_out:
            return None
        was_training = model.training
        model.eval()
        loss_of, total = Checked(self._loss_of), 0.0
        with torch.no_grad():
            loader: DataLoader[Pair] = DataLoader(self._held_out, self.settings.batch)  # type: ignore[arg-type]
            for inputs, targets in itertools.islice(loader, processes.rank, None, processes.count):
                total += float(loss_of.loss(model, (inputs, targets))) * _size((inputs, targets))
        model.train(was_training)
        mean = processes.sums(total)[0] / len(self._held_out)
        return mean if math.isfinite(mean) else math.inf


@dataclass(frozen=True, slots=True)
class Checked(PairLoss):
    """The loss of pairs, which says what is wrong with one that does not fit. Raises: DataError."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        inputs, targets = batch
        device = next(model.parameters()).device
        with _blamed("the model does not take a batch of inputs"):
            prediction = model(moved(inputs, device))
        with _blamed("the loss does not take (prediction, target), the model's answer to a batch and its targets"):
            loss: Any = self.of(prediction, moved(targets, device))
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise DataError(f"the loss returned {found}; return a tensor of one number, the mean over the batch")
        return loss

    def count(self, batch: Any) -> int:
        return _size(batch)


@contextmanager
def _blamed(what: str) -> Iterator[None]:
    """Turn what code of the user's raises into a DataError that says what was asked of it."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        if is_shortage(error):
            raise
        raise DataError(f"{what}: {error}") from error


def _pairs(data: str) -> Sequence[Pair]:
    made = named_object(data, "data")()
    if not hasattr(made, "__len__") or not hasattr(made, "__getitem__") or not len(made):
        raise DataError(f"{data} must return a sequence of (input, target) pairs, such as a list or a torch Dataset")
    first = made[0]
    if not isinstance(first, tuple | list) or len(first) != 2:
        raise DataError(f"{data} must return (input, target) pairs; its first item is a {type(first).__name__}")
    return made  # type: ignore[no-any-return]


def _size(batch: Pair) -> int:
    """Return the rows of a batch."""
    return len(batch[1])


@dataclass(frozen=True, slots=True)
class Share:
    """The batches of one process, of those that all draw alike."""

    batches: BatchSampler
    processes: Processes

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(self.batches, self.processes.rank, None, self.processes.count)


def _steps(
    pairs: Sequence[Pair], settings: Settings, done: int, drawn: Mapping[str, Any] | None, processes: Processes
) -> Iterator[list[Pair]]:
    """Yield this process's batches of each step, without end; the last step of an epoch may have fewer, or none.

    The first `done` steps were seen before a resume; what follows draws on from the generators as they were then.
    """
    seen = epoch = 0
    while True:
        generator = torch.Generator().manual_seed(settings.seed + epoch)
        drawing = BatchSampler(RandomSampler(pairs, generator=generator), settings.batch, drop_last=False)
        loader: DataLoader[Pair] = DataLoader(
            pairs,  # type: ignore[arg-type]
            batch_sampler=Share(drawing, processes),
            generator=generator,
        )
        batches = iter(loader)
        for _ in range(steps_of_epoch(settings, len(pairs))):
            step = list(itertools.islice(batches, settings.accumulate))
            seen += 1
            if seen > done:
                yield step
            elif seen == done and drawn is not None:
                restore_generators(drawn)
        epoch += 1


def _due(done: int, every: int, settings: Settings) -> bool:
    return bool(every) and done % every == 0 and done < settings.steps
