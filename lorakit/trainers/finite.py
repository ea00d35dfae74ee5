"""Training stopped at the step that leaves the finite numbers, before anything of it is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.application.places import full_parameters, own_parameters
from lorakit.application.state import state_of, unwrapped
from lorakit.errors import TrainingError

ADVICE = "nothing of this step is written, earlier checkpoints stay; train with a lower learning rate, or a warm-up"


class Finite:
    """Looks at the loss, the gradients and the weights of every step; each look costs one number from the device."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._places = dict(_places(model))
        self._optimizer = optimizer
        # in the order in which the backward pass reaches them
        self._reached: list[Tensor] = []
        self._stepping = False

    @contextmanager
    def watching(self, done: int = 0) -> Iterator[Finite]:
        """Watch every step of the optimizer inside the block, the first of which follows so many others.

        Raises: TrainingError naming the step, and what is not finite first.
        """
        self._step = done + 1
        hooks = [one.register_post_accumulate_grad_hook(self._reached.append) for one in self._places]
        hooks += [
            self._optimizer.register_step_pre_hook(self._before),
            self._optimizer.register_step_post_hook(self._after),
        ]
        try:
            yield self
        except (RuntimeError, OverflowError) as error:
            if not self._stepping:
                raise
            raise TrainingError(f"the optimizer failed in step {self._step}: {error}; {ADVICE}") from error
        finally:
            for hook in hooks:
                hook.remove()

    def check_loss(self, loss: Tensor) -> None:
        """Look at a loss and the gradients that its backward pass gave. Raises: TrainingError."""
        value = float(loss.detach())
        # a graph that runs again tells of none that it reaches
        reached = list(self._reached) or list(self._places)
        self._reached.clear()
        gradients = [(one, one.grad) for one in reached if one.grad is not None]
        if math.isfinite(value) and _are_finite([gradient for _, gradient in gradients]):
            return
        first = next((one for one, gradient in gradients if not _are_finite([gradient])), None)
        what = f"the gradient of {self._places[first]} is the first that is not finite" if first is not None else ""
        raise TrainingError(f"step {self._step} has the loss {value:g}{', and ' * bool(what)}{what}; {ADVICE}")

    def check_state(self) -> None:
        """Look at what the optimizer keeps, before it is written. Raises: TrainingError."""
        for parameter, values in self._optimizer.state.items():
            for name, value in values.items():
                if isinstance(value, Tensor) and not _are_finite([value]):
                    raise TrainingError(
                        f"after step {self._step - 1} the optimizer's `{name}` of {self._places[parameter]} is not "
                        f"finite; {ADVICE}"
                    )

    def _before(self, optimizer: Any, *_: Any) -> None:
        self._stepping = True

    def _after(self, optimizer: Any, *_: Any) -> None:
        self._stepping = False
        if not _are_finite(list(self._places)):
            first = next(place for one, place in self._places.items() if not _are_finite([one]))
            raise TrainingError(f"step {self._step} gives {first} values that are not finite; {ADVICE}")
        self._step += 1


def _places(model: nn.Module) -> Iterator[tuple[Tensor, str]]:
    """Yield everything that trains, with its name and the place of the rule that trains it."""
    for adapter in state_of(model).used:
        for entry in adapter.plan.entries:
            own = own_parameters(adapter.modules[entry.path], entry) if entry.adapter else {}
            rule = ", ".join(place for place in entry.decided_by if place)
            for name, parameter in (own | full_parameters(unwrapped(model), entry)).items():
                if parameter.requires_grad:
                    yield parameter, f"`{entry.path}.{name}`".replace(".`", "`") + f" ({rule})" * bool(rule)


def _are_finite(tensors: Sequence[Tensor]) -> bool:
    floating = [one.detach() for one in tensors if one.is_floating_point() and one.numel()]
    if not floating:
        return True
    # the largest absolute value: a sum of squares overflows where nothing else does
    largest = torch._foreach_norm(floating, math.inf)
    return bool(torch.stack([one.float().to(largest[0].device) for one in largest]).isfinite().all())
