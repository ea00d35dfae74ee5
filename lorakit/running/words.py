"""What is said of a script's model and optimizer, and of what a spec says that is not in force there."""

from __future__ import annotations

import torch
from torch import nn

from lorakit.api import summary
from lorakit.application.state import adapter_of
from lorakit.language.spec import Spec
from lorakit.planning.plan import Plan


def adapted_words(model: nn.Module) -> str:
    """Return what of a model was adapted."""
    held = summary(model)
    stored = dict.fromkeys(one.weight_dtype for one in held.modules)
    name = getattr(getattr(model, "config", None), "_name_or_path", "")
    adapters = sum(bool(one.added) for one in held.modules)
    return (
        f"{type(model).__name__}{f' of {name}' if name else ''}, {adapters} modules, "
        f"{held.trainable_parameters:,} parameters train, base {' and '.join(stored)}"
    )


def optimizer_words(optimizer: torch.optim.Optimizer) -> str:
    """Return an optimizer's name and its learning rates."""
    rates = dict.fromkeys(f"{float(group['lr']):g}" for group in optimizer.param_groups if "lr" in group)
    # pages stand around another
    inner = getattr(optimizer, "wrapped", None)
    name = type(optimizer).__name__ if inner is None else f"{type(inner).__name__}, paged"
    return f"{name}, lr {' and '.join(rates)}"


def said_of_optimizer(spec: Spec | Plan, model: nn.Module) -> str:
    """Return what a spec says of the optimizer of its adapter on a model: its name, rates, and paging; or nothing."""
    plan = adapter_of(model).plan
    optimizer = spec.optimizer
    words = []
    if isinstance(spec, Spec) and optimizer is not None:
        words.append(f"`{str(Spec(optimizer=spec.optimizer)).strip()}`")
    elif optimizer is not None:
        words.append(f"`optimizer {plan.optimizer.call.name} lr {plan.optimizer.lr:g}`")
    adapters = [one.adapter for one in plan.entries if one.adapter is not None]
    rates = [*(one.lr for one in adapters), *(one.train_lr for one in plan.entries)]
    words += [f"`lr {rate:g}`" for rate in dict.fromkeys(filter(None, rates))]
    if any(parameter.rate != 1.0 for one in adapters for parameter in one.parameters):
        words.append("rates of single parameters")
    if any(one.paged for one in adapters) and not plan.optimizer.paged:
        words.append("`paged`")
    return ", ".join(words)


def left_to_script(spec: Spec | Plan) -> str:
    """Return which lines on a step the script decides instead; nothing if there are none, or it is a plan."""
    step = spec.step if isinstance(spec, Spec) else None
    if step is None:
        return ""
    words = [f"{name} {value}" for name, value in (("batch", step.batch), ("tokens", step.tokens)) if value is not None]
    words += ["capture"] * step.capture
    return f"`step {' '.join(words)}` is not in force: the script makes its own steps" if words else ""
