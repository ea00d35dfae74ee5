"""Training a plain PyTorch model: a loop of forward, loss, backward and step, with checkpoints that resume."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from lorakit.application.batches import moved
from lorakit.application.optimizer import build_optimizer, keeps_lr
from lorakit.application.state import state_of
from lorakit.artifacts.adapter_folder import WEIGHTS, write_adapter_files
from lorakit.artifacts.loading import restore_tensors
from lorakit.errors import DataError
from lorakit.named_objects import named_object
from lorakit.trainers.checkpoints import STATE, Checkpoints
from lorakit.trainers.display import Display
from lorakit.trainers.finite import Finite
from lorakit.trainers.generators import read_generators, restore_generators, save_generators
from lorakit.trainers.modes import to_evaluation, to_training
from lorakit.trainers.settings import Outcome, Settings

OPTIMIZER = "optimizer.safetensors"
Loss = Callable[[Any, Any], Tensor]
Pair = tuple[Any, Any]


def default_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return cross-entropy over the last dimension for whole-number targets, the mean squared error for any other."""
    if target.dtype in (torch.int64, torch.int32):
        return functional.cross_entropy(output.reshape(-1, output.shape[-1]).float(), target.reshape(-1).long())
    return functional.mse_loss(output, target)


class PairsTask:
    """(input, target) pairs for one model, ready to train on."""

    def __init__(self, data: str, loss: str | None, settings: Settings) -> None:
        """Make the pairs and find the loss. Raises: DataError."""
        pairs = _pairs(data)
        self._loss_of: Loss = named_object(loss, "loss") if loss else default_loss
        count = max(1, round(len(pairs) * settings.held_out)) if settings.held_out else 0
        if len(pairs) <= count:
            raise DataError(f"{len(pairs)} pairs are too few to hold {settings.held_out:.0%} of them out")
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(settings.seed)).tolist()
        self._held_out = [pairs[index] for index in order[:count]]
        self._pairs = [pairs[index] for index in order[count:]]
        steps = settings.steps or math.ceil(settings.epochs * len(self._pairs) / settings.batch)
        self.settings = replace(settings, steps=steps)

    @property
    def description(self) -> str:
        """The data in words."""
        return (
            f"{len(self._pairs)} pairs to train on, {len(self._held_out)} held out; "
            f"{self.settings.steps} steps of {self.settings.batch} pairs"
        )

    def calibration(self, count: int) -> list[tuple[Any]]:
        """Return the inputs of the first training pairs as the model's arguments, each a batch of its own."""
        return [(inputs,) for inputs, _ in DataLoader(self._pairs[:count])]  # type: ignore[arg-type]

    def train(self, model: nn.Module, work: Path, display: Display, *, resume: bool) -> Outcome:
        """Train an adapted model; checkpoints go to `work`, and to resume goes on from the last that is whole there.

        Raises: DataError if a pair does not fit the model, TrainingError where training leaves the finite numbers,
        WriteError where a checkpoint cannot be written and the settings do not say to go on.
        """
        settings = self.settings
        optimizer = build_optimizer(model, settings.lr)
        base_rates = [group["lr"] for group in optimizer.param_groups]
        falls = not keeps_lr(model)
        # what dropout draws is the seed's, and goes on after a checkpoint where it stood
        torch.manual_seed(settings.seed)
        checkpoints = Checkpoints(work, settings.goes_on, display.warn)
        checkpoint = checkpoints.last() if resume else None
        done, drawn = _read_checkpoint(model, optimizer, checkpoint) if checkpoint else (0, None)
        before = self._held_out_loss(model)
        if checkpoint is None:
            display.held_out(0, before, of_tokens=False)
        model.train()
        with display.running(settings.steps) as stop, Finite(model, optimizer).watching(done) as finite:
            for inputs, targets in _batches(self._pairs, settings, done, drawn) if done < settings.steps else ():
                for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                    group["lr"] = rate * _schedule(done, settings, falls)
                to_training(optimizer)
                loss = self._loss(model, inputs, targets)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                finite.check_loss(loss)
                optimizer.step()
                done += 1
                display.step(done, float(loss.detach()))
                if _due(done, settings.evaluate_every, settings):
                    to_evaluation(optimizer)
                    display.held_out(done, self._held_out_loss(model), of_tokens=False)
                ends = bool(stop.signal) and done < settings.steps
                if ends or _due(done, settings.save_every, settings):
                    to_evaluation(optimizer)
                    finite.check_state()
                    checkpoints.write(done, functools.partial(_write_checkpoint, model, optimizer, done), needed=ends)
                if done >= settings.steps or ends:
                    break
        to_evaluation(optimizer)
        stopped = stop.signal if done < settings.steps else 0
        after = None if stopped else self._held_out_loss(model)
        display.held_out(done, after, of_tokens=False)
        model.eval()
        return Outcome(before, after, done, stopped)

    def answer(self, model: nn.Module, prompt: str) -> str:
        """A plain model has no prompt to answer. Raises: DataError."""
        raise DataError("a sample can be shown for Hugging Face language models alone")

    def save_beside(self, folder: Path) -> None:
        """A plain model has nothing to put beside its adapter."""

    def _loss(self, model: nn.Module, inputs: Any, targets: Any) -> Tensor:
        device = next(model.parameters()).device
        try:
            return self._loss_of(model(moved(inputs, device)), moved(targets, device))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"a batch does not fit the model or the loss: {error}") from error

    def _held_out_loss(self, model: nn.Module) -> float | None:
        if not self._held_out:
            return None
        was_training = model.training
        model.eval()
        total = 0.0
        with torch.no_grad():
            for inputs, targets in DataLoader(self._held_out, self.settings.batch):  # type: ignore[arg-type]
                total += float(self._loss(model, inputs, targets)) * len(targets)
        model.train(was_training)
        mean = total / len(self._held_out)
        return mean if math.isfinite(mean) else math.inf


def _pairs(data: str) -> Sequence[Pair]:
    made = named_object(data, "data")()
    if not hasattr(made, "__len__") or not hasattr(made, "__getitem__") or not len(made):
        raise DataError(f"{data} must return a sequence of (input, target) pairs, such as a list or a torch Dataset")
    first = made[0]
    if not isinstance(first, tuple | list) or len(first) != 2:
        raise DataError(f"{data} must return (input, target) pairs; its first item is a {type(first).__name__}")
    return made  # type: ignore[no-any-return]


def _batches(
    pairs: Sequence[Pair], settings: Settings, skip: int, drawn: Mapping[str, Any] | None
) -> Iterator[tuple[Any, Any]]:
    """Yield batches without end, shuffled anew each epoch by the seed.

    The first `skip` were seen before a resume; what follows draws on from the generators as they were then.
    """
    seen = epoch = 0
    while True:
        generator = torch.Generator().manual_seed(settings.seed + epoch)
        for batch in DataLoader(pairs, settings.batch, shuffle=True, generator=generator):  # type: ignore[arg-type]
            seen += 1
            if seen > skip:
                yield batch
            elif seen == skip and drawn is not None:
                restore_generators(drawn)
        epoch += 1


def _schedule(done: int, settings: Settings, falls: bool) -> float:
    """Return the share of the learning rate at this step: up over the warm-up, then linearly down to 0 if it falls."""
    if done < settings.warmup:
        return (done + 1) / settings.warmup
    if not falls:
        return 1.0
    return max(0.0, (settings.steps - done) / max(1, settings.steps - settings.warmup))


def _due(done: int, every: int, settings: Settings) -> bool:
    return bool(every) and done % every == 0 and done < settings.steps


def _write_checkpoint(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, folder: Path) -> None:
    """Write adapter, optimizer state, generators and step into a folder."""
    state = optimizer.state_dict()
    tensors, plain = {}, {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().cpu().contiguous()
            else:
                plain[f"{index}.{name}"] = value
    groups = [{name: value for name, value in group.items() if name != "params"} for group in state["param_groups"]]
    write_adapter_files(model, folder, state_of(model).plugins)
    save_file(tensors, folder / OPTIMIZER)
    save_generators(folder)
    progress = {"global_step": step, "optimizer": plain, "groups": groups}
    (folder / STATE).write_text(json.dumps(progress), encoding="utf-8")


def _read_checkpoint(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> tuple[int, Mapping[str, Any]]:
    """Put a checkpoint back, and return its step and the generators as they stood."""
    restore_tensors(model, load_file(folder / WEIGHTS))
    saved = json.loads((folder / STATE).read_text(encoding="utf-8"))
    values: dict[int, dict[str, Any]] = {}
    for key, value in {**load_file(folder / OPTIMIZER), **saved["optimizer"]}.items():
        index, _, name = key.partition(".")
        values.setdefault(int(index), {})[name] = value
    # some optimizers count steps in their groups
    groups = [
        {**own, **kept} for own, kept in zip(optimizer.state_dict()["param_groups"], saved["groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": values, "param_groups": groups})
    return int(saved["global_step"]), read_generators(folder)
