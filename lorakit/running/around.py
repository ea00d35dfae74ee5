"""What stands around the functions of transformers and PEFT that a script calls: each does as before, and more."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from lorakit.application.state import unwrapped
from lorakit.application.trainables import trainables
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.running.script import script
from lorakit.trainers.accelerate_states import checkpoint_adapters

Function = Callable[..., Any]


def _replace(holder: Any, name: str, around: Callable[[Function], Function]) -> None:
    """Put another function in the place of one, with its name, signature and words."""
    own = getattr(holder, name)
    setattr(holder, name, functools.wraps(own)(around(own)))


def loading(module: ModuleType) -> None:
    """Take each model that a script loads or makes of a config; of one within another the outermost."""

    def around(own: Function) -> Function:
        def load(cls: type, *args: Any, **kwargs: Any) -> Any:
            with script().loading() as is_outermost:
                made = own(cls, *args, **kwargs)
            if is_outermost:
                script().take(made[0] if isinstance(made, tuple) else made)
            return made

        return load

    for name in ("from_pretrained", "_from_config"):
        own = vars(module.PreTrainedModel)[name].__func__
        setattr(module.PreTrainedModel, name, classmethod(functools.wraps(own)(around(own))))


def training(module: ModuleType) -> None:
    """Have trainers use the spec's optimizer, adapt what `model_init` makes, and take the adapters for PEFT's."""
    trainer = module.Trainer

    def optimizer(own: Function) -> Function:
        def create(self: Any, *args: Any, **kwargs: Any) -> Any:
            script().give_optimizer(self)
            return own(self, *args, **kwargs)

        return create

    def anew(own: Function) -> Function:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            script().forget()
            return own(self, *args, **kwargs)

        return call

    def made(cls: type, /, **kwargs: Any) -> None:
        super(trainer, cls).__init_subclass__(**kwargs)
        own = vars(cls).get("__init__")
        if own is not None and "peft_config" in inspect.signature(own).parameters:
            _replace(cls, "__init__", _with_view)

    _replace(trainer, "create_optimizer", optimizer)
    _replace(trainer, "call_model_init", anew)
    trainer.__init_subclass__ = classmethod(made)


def _with_view(own: Function) -> Function:
    """Show a constructor that knows adapters as PEFT's alone what it knows."""
    signature = inspect.signature(own)

    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs)
        with script().viewed(self, given.arguments):
            own(*given.args, **given.kwargs)

    return make


def checkpointing(module: ModuleType) -> None:
    """Have the states that a script's own loop saves hold the adapters alone."""

    def around(own: Function) -> Function:
        def make(self: Any, *args: Any, **kwargs: Any) -> None:
            own(self, *args, **kwargs)
            checkpoint_adapters(self)

        return make

    _replace(module.Accelerator, "__init__", around)


def preparing(module: ModuleType) -> None:
    """Let what trains train on where PEFT freezes a model, and recompute as PEFT has a quantized one do."""

    def around(own: Function) -> Function:
        def prepare(model: Any, use_gradient_checkpointing: bool = True, *args: Any, **kwargs: Any) -> Any:
            training = [one for one in trainables(unwrapped(model)).values() if one.requires_grad]
            made = own(model, use_gradient_checkpointing, *args, **kwargs)
            for parameter in training:
                parameter.requires_grad_(True)
            # PEFT asks transformers whether it is quantized, which knows of no layers of lorakit's
            is_quantized = any(isinstance(one, QuantizedLinear) for one in made.modules())
            if training and use_gradient_checkpointing and is_quantized:
                how = kwargs.get("gradient_checkpointing_kwargs") or {"use_reentrant": False}
                made.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
            return made

        return prepare

    _replace(module, "prepare_model_for_kbit_training", around)
