"""Whether what a spec trains does learn: looked at in a model's first forward to train, and an optimizer's first step.

Both are a moment of every loop and trainer. What is found is told as an error that names the cause, instead of a run
that trains nothing, or something else.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lorakit.application.sharding import note_replica
from lorakit.application.state import adapted_state
from lorakit.application.trainables import frozen_words, trainables
from lorakit.application.waiting import check_arrived
from lorakit.data.tokens import IGNORED
from lorakit.errors import TrainingError
from lorakit.huggingface import marks
from lorakit.trainers import neglected

logger = logging.getLogger("lorakit")
# those that are watched, and those of them, and their copies, whose first forward to train was seen
_watched: WeakSet[nn.Module] = WeakSet()
_trained: WeakSet[nn.Module] = WeakSet()
_stepped: WeakSet[torch.optim.Optimizer] = WeakSet()
_fresh: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()
_is_registered = False


def remember(model: nn.Module) -> None:
    """Remember what of a model no file holds, before it is adapted."""
    if adapted_state(model) is None:
        _fresh[model] = marks.fresh(model)


def watch(model: nn.Module) -> None:
    """Look at a model's first forward to train, and at the first step of each optimizer that is made for it."""
    global _is_registered
    if not _is_registered:
        register_optimizer_step_pre_hook(_before_step)
        _is_registered = True
    _watched.add(model)
    _trained.discard(model)
    if _before_forward not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_before_forward, with_kwargs=True)


def let_alone(model: nn.Module) -> None:
    """Undo `watch`."""
    _watched.discard(model)
    for key, hook in list(model._forward_pre_hooks.items()):
        if hook is _before_forward:
            del model._forward_pre_hooks[key]
            model._forward_pre_hooks_with_kwargs.pop(key, None)


def _before_forward(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if torch.compiler.is_compiling() or not (model.training and torch.is_grad_enabled()) or model in _trained:
        return
    if _is_captured():
        return
    note_replica(model)
    check_arrived(model)
    _check_trains(model, (*args, *kwargs.values()))
    _check_fresh(model)
    _check_labels(kwargs.get("labels"))
    _trained.add(model)


def _is_captured() -> bool:
    """Whether what runs now is recorded as a CUDA graph, where no value can be looked at."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _check_trains(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Raise TrainingError if everything that the spec trains is frozen, and no input asks for a gradient either."""
    found = trainables(model)
    # what is no parameter stands in for one during a call: gradients are whoever's put it there
    if not found or any(one.requires_grad or not isinstance(one, nn.Parameter) for one in found.values()):
        return
    if not any(isinstance(one, Tensor) and one.requires_grad for one in inputs):
        raise TrainingError(frozen_words(found))


def _check_fresh(model: nn.Module) -> None:
    """Raise TrainingError if weights that the model's files lack stay as they were drawn: no adapter holds them."""
    trained = {path for path, parameter in trainables(model).items() if parameter.requires_grad}
    trained |= {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if lost := [name for name in _fresh.get(model, ()) if name not in trained]:
        paths = list(dict.fromkeys(name.rpartition(".")[0] for name in lost))
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise TrainingError(
            f"the files of this {type(model).__name__} lack `{lost[0]}`{more}, drawn at random therefore: frozen, it "
            f"learns nothing, and no adapter holds it. Have the spec train it: `train {','.join(paths[:3])}`"
        )


def _check_labels(labels: Any) -> None:
    if type(labels) is not Tensor or labels.is_meta or labels.is_floating_point() or not labels.numel():
        return
    if bool((labels == IGNORED).all()):
        raise TrainingError(
            f"the first batch has no learned token: every label is {IGNORED}. Look at how the rows are made: the "
            "answer may be cut off, or its mask may be wrong"
        )


def _before_step(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if optimizer in _stepped or _is_captured():
        return
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    _check_numbers(optimizer, held)
    # a closure computes the gradients in the step
    has_gradients = not any(map(callable, (*args[1:], *kwargs.values())))
    # the forward of a compiled model is not seen
    for model in list(_watched | _trained):
        found = {parameter: path for path, parameter in trainables(model).items()}
        mine = {parameter: path for parameter, path in found.items() if parameter in held}
        if found and not mine:
            _check_held(model, held, next(iter(found.values())))
            continue
        if has_gradients and mine and model in _trained:
            _check_gradients(mine)
        if any(one.requires_grad and (one.grad is not None or not has_gradients) for one in mine):
            neglected.tell(model, optimizer)
            _say_if_lost(model, held - found.keys())
    _stepped.add(optimizer)


def _check_numbers(optimizer: torch.optim.Optimizer, held: set[nn.Parameter]) -> None:
    """Raise TrainingError if an optimizer that lays all parameters in one row holds packed weights too."""
    if isinstance(optimizer, torch.optim.LBFGS) and not all(one.is_floating_point() for one in held):
        raise TrainingError(
            "this LBFGS takes all of its parameters together, and holds quantized weights, which are no such numbers: "
            "give it those that train, `[one for one in model.parameters() if one.requires_grad]`"
        )


def _check_held(model: nn.Module, held: set[nn.Parameter], first: str) -> None:
    """Raise TrainingError if an optimizer holds what is frozen of a model, and of its adapters nothing."""
    stale = [name for name, parameter in model.named_parameters() if parameter in held]
    if stale and not any(model.get_parameter(name).requires_grad for name in stale):
        raise TrainingError(
            f"nothing trains: this optimizer holds {len(stale)} frozen parameters of the model, such as `{stale[0]}`, "
            f"and none of its adapters, such as `{first}`. It was made before the model was adapted: make it "
            "afterwards, as `lorakit.optimizer(model)` or of the parameters that require a gradient"
        )


def _check_gradients(mine: Mapping[nn.Parameter, str]) -> None:
    """Raise TrainingError if no gradient came, or one that is no number, and say which adapters got none."""
    reached = {parameter.grad: path for parameter, path in mine.items() if parameter.grad is not None}
    if not reached:
        raise TrainingError(
            f"nothing trains: in the first step none of the {len(mine)} parameters of the adapters, first "
            f"`{next(iter(mine.values()))}`, has a gradient: the loss does not come from what this model computed with "
            "gradients, or they were set to none before the step"
        )
    if broken := [path for gradient, path in reached.items() if not _is_finite(gradient)]:
        raise TrainingError(
            f"the first gradient of `{broken[0]}` and {len(broken) - 1} more is not finite, and a step would destroy "
            f"the adapter: a batch whose labels are all {IGNORED} has no mean loss, and too high a loss overflows fp16"
        )
    lacking = [path for parameter, path in mine.items() if parameter.grad is None]
    if lacking:
        logger.warning(
            "%d of %d parameters of the adapters, first `%s`, got no gradient in the first step: what they belong to "
            "was not used for its loss, and does not learn from such batches",
            len(lacking), len(mine), lacking[0],
        )  # fmt: skip


def _say_if_lost(model: nn.Module, others: set[nn.Parameter]) -> None:
    """Say what of a model an optimizer trains beside its adapters: nothing saves it."""
    lost = [name for name, parameter in model.named_parameters() if parameter in others and parameter.requires_grad]
    if lost:
        logger.warning(
            "%d parameters of the model train beside its adapters, first `%s`: no checkpoint and no adapter folder "
            "holds them; have the spec train them: `train %s`",
            len(lost), lost[0], lost[0].rpartition(".")[0],
        )  # fmt: skip


def _is_finite(gradient: Tensor) -> bool:
    # of what is spread over processes, what lies here
    local = gradient.to_local() if hasattr(gradient, "to_local") else gradient
    try:
        return local.is_sparse or bool(torch.isfinite(local).all())
    except torch.OutOfMemoryError:
        # a look is not to end a step that has room without it
        return True
