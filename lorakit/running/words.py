"""What is said of a script's model and optimizer, and of what a spec says that is not in force there."""

from __future__ import annotations

import torch
from torch import nn

from lorakit.api import summary
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


def left_to_script(spec: Spec | Plan) -> str:
    """Return which lines on a step the script decides instead; nothing if there are none, or it is a plan."""
    step = spec.step if isinstance(spec, Spec) else None
    if step is None:
        return ""
    words = [f"{name} {value}" for name, value in (("batch", step.batch), ("tokens", step.tokens)) if value is not None]
    words += ["capture"] * step.capture
    return f"`step {' '.join(words)}` is not in force: the script makes its own steps" if words else ""
