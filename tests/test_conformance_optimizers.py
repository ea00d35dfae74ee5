"""Every check of optimizers finds the one that it is there for, and says so in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import pytest
import torch
from planted import failures, variant
from torch import Tensor

from lorakit.builtin.optimizers import SGD
from lorakit.testing import optimizer_checks


class InPlace(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(parameter.grad.clamp_(-1, 1), alpha=group["lr"])


class Cautious(torch.optim.SGD):
    """Halves a step where the gradient turned since the last one, which no state dict holds."""

    def __init__(self, *words: Any, **more: Any) -> None:
        super().__init__(*words, **more)
        self.before: dict[Any, Tensor] = {}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                turned = parameter.grad * self.before.get(parameter, parameter.grad) < 0
                parameter.data.sub_(parameter.grad * (1 - 0.5 * turned.float()), alpha=group["lr"])
                self.before[parameter] = parameter.grad.clone()


def built(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    return lambda self, groups: kind([{**group} for group in groups], lr=1e-2)  # type: ignore[call-arg]


class Upwards(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(parameter.grad, alpha=group["lr"])


class Deaf(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    parameter.data.add_(1)
                else:
                    parameter.data.sub_(parameter.grad, alpha=0.01)


class Forgetful(torch.optim.SGD):
    steps = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(parameter.grad, alpha=group["lr"] / self.steps)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("default-lr", {"default_lr": 0.0}, "`default_lr` is 0.0"),
        ("groups", {"build": lambda self, groups: torch.optim.SGD(groups[0]["params"], 0.1)}, "just the parameters"),
        ("descends", {"build": built(Upwards)}, "took a quadratic from"),
        ("learning-rates", {"build": built(Deaf)}, "scaled by group['lr']"),
        ("without-gradient", {"build": built(Deaf)}, "whose gradient is None moved"),
        ("resumes", {"build": built(Forgetful)}, "state_dict() has to hold everything"),
        ("gradients-untouched", {"build": built(InPlace)}, "changed a gradient in place"),
        ("resumes-from-a-file", {"build": built(Cautious)}, "state_dict() has to hold all of it"),
        ("option-effect", {"build": built(torch.optim.SGD)}, "has no effect"),
        ("state", {"state": lambda self, shape, dtype: {"mean": (shape, dtype)}}, "after a step the state holds {}"),
        ("state", {"state": lambda self, shape, dtype: 3}, "is no mapping"),
    ],
)
def test_optimizers(name: str, changes: dict[str, Any], words: str) -> None:
    found = failures(optimizer_checks(variant(SGD, **changes)), name)
    assert found and words in found[0], found


class Stepping(torch.optim.Optimizer):
    """Steps against the gradient, times what `factor` says of it."""

    def __init__(self, groups: Any, lr: float = 1e-2) -> None:
        super().__init__(groups, {"lr": lr})
        self.steps, self.largest, self.kept = 0, 0.0, dict[Any, Tensor]()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.sub_(group["lr"] * self.change(parameter))

    def change(self, parameter: Tensor) -> Tensor:
        assert parameter.grad is not None
        return parameter.grad


class Warming(Stepping):
    """Ten times shorter steps from the 13th on, counted where no state dict looks."""

    def change(self, parameter: Tensor) -> Tensor:
        return super().change(parameter) * (0.1 if self.steps > 12 else 1.0)


class ByTheLargest(Stepping):
    """Steps by the largest gradient so far, which no state dict holds."""

    def change(self, parameter: Tensor) -> Tensor:
        gradient = super().change(parameter)
        self.largest = max(self.largest, float(gradient.norm()))
        return gradient / (1 + self.largest)


class LargeAlone(Stepping):
    """Keeps a momentum of large parameters where no state dict looks."""

    def change(self, parameter: Tensor) -> Tensor:
        gradient = super().change(parameter)
        if parameter.numel() < 10_000:
            return gradient
        self.kept[parameter] = 0.9 * self.kept.get(parameter, torch.zeros_like(parameter)) + gradient
        return self.kept[parameter]


class Exact(Stepping):
    """Keeps float32 momentum of 16-bit parameters, which torch's load_state_dict rounds."""

    def change(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        state.setdefault("mean", torch.zeros_like(parameter, dtype=torch.float32))
        state["mean"].mul_(0.9).add_(super().change(parameter).float())
        return state["mean"].to(parameter.dtype)


class Emptying(Stepping):
    """Leaves no gradient."""

    def change(self, parameter: Tensor) -> Tensor:
        gradient, parameter.grad = super().change(parameter), None
        return gradient


class ClippingLarge(Stepping):
    """Cuts large gradients where they lie."""

    def change(self, parameter: Tensor) -> Tensor:
        gradient = super().change(parameter)
        return gradient.div_(gradient.norm() if gradient.norm() > 1e3 else 1)


class WideningShort(Stepping):
    """Changes gradients of 16 bits where they lie."""

    def change(self, parameter: Tensor) -> Tensor:
        gradient = super().change(parameter)
        return gradient.mul_(1.5) if gradient.dtype == torch.bfloat16 else gradient


def option(kind: Any, default: Any, **metadata: Any) -> dict[str, Any]:
    """Return one option that is called `mine`."""
    field = dataclasses.field(default=default, metadata=metadata)
    return {"__annotations__": {"name": ClassVar[str], "mine": kind}, "mine": field}


class Nothing:
    """An optimizer's class without options."""

    default_lr = 1e-2

    def state(self, shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("resumes-from-a-file", {"build": built(Warming)}),
        ("resumes-from-a-file", {"build": built(ByTheLargest)}),
        ("resumes-from-a-file", {"build": built(LargeAlone)}),
        ("resumes-from-a-file", {"build": built(Exact)}),
        ("gradients-untouched", {"build": built(Emptying)}),
        ("gradients-untouched", {"build": built(ClippingLarge)}),
        ("gradients-untouched", {"build": built(WideningShort)}),
        ("option-effect", {"build": built(Stepping), **option(bool, False)}),
        ("option-effect", {"build": built(Stepping), **option(Literal["plain", "nesterov"], "plain")}),
        ("option-effect", {"build": built(Stepping), **option(float | None, None)}),
        ("option-effect", {"build": built(Stepping), **option(tuple[float, float], (0.9, 0.99))}),
    ],
)
def test_optimizers_whose_faults_few_gradients_show(name: str, changes: dict[str, Any]) -> None:
    assert failures(optimizer_checks(variant(Nothing, **changes)), name, 1)


def test_an_option_may_own_that_steps_do_not_depend_on_it() -> None:
    checks = optimizer_checks(variant(Nothing, build=built(Stepping), **option(bool, False, effect=False)))
    assert "option-effect" not in {check.name for check in checks}
