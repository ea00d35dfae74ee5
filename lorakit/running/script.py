"""The script that runs in this Python: which of its models is the one to adapt, and whether that is what it trains."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, WeakSet, ref

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lorakit import api
from lorakit.application.optimizer import know
from lorakit.application.optimizer_words import names_optimizer, said_of_optimizer
from lorakit.application.state import adapted_state, adapter_of, state_of, unwrapped
from lorakit.application.trainables import trainables
from lorakit.artifacts.adapter_folder import save_adapter
from lorakit.errors import LorakitError, PlanError, PromiseError, TrainingError, WriteError
from lorakit.running.asked import FOLDER, Asked, Told, read_asked
from lorakit.running.words import adapted_words, left_to_script, optimizer_words
from lorakit.trainers.peft import peft, peft_config


@functools.cache
def script() -> Script:
    """Return the one script of this Python."""
    folder = Path(os.environ[FOLDER])
    made = Script(read_asked(folder), folder)
    register_optimizer_step_pre_hook(made.before_step)
    sys.excepthook = functools.partial(_show, sys.excepthook)
    atexit.register(made.end, os.getpid())
    return made


class Script:
    """Adapts the first model that the spec fits, once it is loaded, and holds every optimizer against it."""

    def __init__(self, asked: Asked, folder: Path) -> None:
        self._asked = asked
        self._spec = asked.read_spec()
        self._folder = folder
        self._told = Told()
        self._depth = 0
        self._adapted: ReferenceType[nn.Module] | None = None
        # models that stay as they are, and why
        self._left: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        self._stepped: WeakSet[torch.optim.Optimizer] = WeakSet()
        self._given: WeakSet[torch.optim.Optimizer] = WeakSet()

    @property
    def model(self) -> nn.Module | None:
        """The model that was adapted, while it lives."""
        return self._adapted() if self._adapted is not None else None

    @contextmanager
    def loading(self) -> Iterator[bool]:
        """Hold a load, and yield whether it is no part of another."""
        self._depth += 1
        try:
            yield self._depth == 1
        finally:
            self._depth -= 1

    def take(self, model: nn.Module) -> None:
        """Adapt a model that was loaded, if it is the one. Raises: what `lorakit.apply` raises of one that fits."""
        if why := self._why_not(model):
            self._leave(model, why)
            return
        try:
            with self.loading():
                api.apply(self._spec, model, self._asked.seed)
        except PromiseError:
            raise
        except PlanError as error:
            self._leave(model, f"the spec does not fit: {error}")
        else:
            self._remember(model)

    def _why_not(self, model: nn.Module) -> str:
        only = self._asked.only
        if only and only not in {one.__name__ for one in type(model).__mro__}:
            return f"--only {only}"
        if self.model is not None or self._told.optimizer:
            return "another was loaded before it, and is adapted"
        if not torch.is_grad_enabled():
            return "it was loaded where no gradient is computed"
        if any(one.is_meta for one in model.parameters()):
            return "it has no weights"
        return ""

    def _leave(self, model: nn.Module, why: str) -> None:
        self._left[model] = why
        if (line := f"{type(model).__name__}: {why}") not in self._told.left:
            self._told.left.append(line)
            self._told.write(self._folder)

    def _remember(self, model: nn.Module) -> None:
        self._adapted = ref(model)
        self._told.adapted = adapted_words(model)
        self._say(f"adapted {self._told.adapted}")
        if words := left_to_script(self._spec):
            self._say(words)
        self._told.write(self._folder)

    def forget(self) -> None:
        """Let the next model be the one: a trainer makes it anew."""
        self._adapted = None
        self._told.optimizer = ""

    @contextmanager
    def viewed(self, trainer: Any, arguments: MutableMapping[str, Any]) -> Iterator[None]:
        """Give a constructor that takes PEFT's configs the model as a `PeftModel`, or the spec as such a config."""
        model: Any = arguments.get("model")
        if importlib.util.find_spec("peft") is None:
            yield
        elif self._is_adapted(model):
            arguments["model"] = peft(model)
            yield
        elif self._is_to_load(model) and arguments.get("peft_config") is None:
            arguments["peft_config"] = peft_config(self._spec, seed=self._asked.seed)
            with self.loading():
                yield
            self._remember(unwrapped(trainer.model))
        else:
            yield

    def _is_adapted(self, model: Any) -> bool:
        return model is not None and model is self.model

    def _is_to_load(self, model: Any) -> bool:
        return isinstance(model, str) and self.model is None and not self._asked.only

    def give_optimizer(self, trainer: Any) -> None:
        """Give a trainer that has none, and was told of none but in its arguments, what the spec says of it."""
        if trainer.optimizer is not None or getattr(trainer, "optimizer_cls_and_kwargs", None) is not None:
            return
        model = unwrapped(trainer.model)
        said = ", ".join(said_of_optimizer(state_of(model))) if adapted_state(model) is not None else ""
        if not said:
            return
        named = names_optimizer(adapter_of(model).plan, state_of(model).plugins)
        trainer.optimizer = api.optimizer(model, None if named else trainer.args.learning_rate)
        self._given.add(trainer.optimizer)
        fields = "`optim`, `learning_rate` and `weight_decay`" if named else "`optim` and `weight_decay`"
        self._say(f"the spec says {said}: {fields} of the trainer's arguments are not in force")

    def before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at what an optimizer holds, the first time that it steps. Raises: TrainingError."""
        if optimizer in self._stepped:
            return
        self._stepped.add(optimizer)
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        model = self.model
        if model is not None and not held.isdisjoint(trainables(model).values()):
            self._tell_optimizer(optimizer, model)
            return
        for other, why in self._left.items():
            if not held.isdisjoint(other.parameters()):
                raise TrainingError(
                    f"this {type(optimizer).__name__} trains a {type(other).__name__} that is not adapted ({why}), and "
                    "no adapter: the model to train has to be loaded first, or `--only CLASS` to name its class"
                )

    def _tell_optimizer(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        # what is said here is not to be said again
        know(optimizer)
        if self._told.optimizer:
            return
        is_given = optimizer in self._given
        said = "" if is_given else ", ".join(said_of_optimizer(state_of(model)))
        whose = "the spec's" if is_given else "the script's own"
        lost = f"; not in force: {said}" if said else ""
        self._told.optimizer = f"{optimizer_words(optimizer)}, {whose}{lost}"
        if said:
            self._say(f"the optimizer is the script's own, and what the spec says is not in force: {said}")
        self._told.write(self._folder)

    def saved(self, folder: Path) -> None:
        """Remember where an adapter lies, of a folder and one within it, such as a checkpoint, the outer."""
        if Path(self._told.saved or folder) not in folder.parents:
            self._told.saved = str(folder)
            self._told.write(self._folder)

    def end(self, process: int) -> None:
        """Write the adapter where the user asked for it, unless the script failed, or this is a copy of its process."""
        output, model = self._asked.output, self.model
        if output is None or model is None or process != os.getpid() or self._told.rank or hasattr(sys, "last_type"):
            return
        try:
            written = save_adapter(model, Path(output), state_of(model).plugins, replace=self._asked.force)
            self._told.saved = str(written)
        except (LorakitError, WriteError) as error:
            sys.stderr.write(f"error: {error}\n")
        self._told.write(self._folder)

    def _say(self, line: str) -> None:
        if not self._told.rank and not self._asked.quiet:
            sys.stderr.write(f"lorakit: {line}\n")
            sys.stderr.flush()


def _show(
    usual: Callable[[type[BaseException], BaseException, TracebackType | None], Any],
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
) -> None:
    """Show an error of lorakit's as a message with its place in the script, and any other as it would have been."""
    if not isinstance(error, LorakitError | TrainingError | WriteError):
        usual(kind, error, trace)
        return
    place = ""
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") == "__main__":
            place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}: "
        trace = trace.tb_next
    sys.stderr.write(f"{place}error: {error}\n")
