"""Gradients held against what the outputs show: central differences along a random direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lorakit.testing.checks import CheckError, expect

# float32 outputs, and a central difference of them
NEARNESS = 2e-2
STEP = 1e-2


def expect_input_gradient(model: nn.Module, x: Tensor, where: str = "") -> None:
    """The gradient of the inputs is what the outputs show; `where` says of which model, behind the words."""
    x = x.detach().clone().requires_grad_()
    weights = _weights(model(x))
    outputs = model(x)
    if not outputs.requires_grad:
        raise CheckError(f"the inputs{where} get no gradient")
    (found,) = torch.autograd.grad((outputs * weights).sum(), x, allow_unused=True)
    if found is None:
        raise CheckError(f"the inputs{where} get no gradient")
    direction = _direction(x)
    with torch.no_grad():
        wanted = _slope(lambda h: (model(x + h * direction) * weights).double().sum())
    _expect_near(found, direction, wanted, f"the inputs{where}")


def expect_parameter_gradients(
    model: nn.Module, x: Tensor, trained: Mapping[str, Tensor], where: str = "", *, partial: bool = False
) -> None:
    """Every parameter gets the gradient that the outputs show; with `partial` it gets one, whatever it is."""
    weights = _weights(model(x))
    found = torch.autograd.grad((model(x) * weights).sum(), list(trained.values()), allow_unused=True)
    for (name, parameter), gradient in zip(trained.items(), found, strict=True):
        if gradient is None:
            raise CheckError(f"`{name}` trains, and got no gradient{where}")
        if partial:
            continue
        direction, start = _direction(parameter), parameter.detach().clone()

        def at(h: float, parameter: Tensor = parameter, start: Tensor = start, way: Tensor = direction) -> Tensor:
            parameter.copy_(start + h * way)
            outputs: Tensor = model(x)
            return (outputs * weights).double().sum()

        with torch.no_grad():
            wanted = _slope(at)
            parameter.copy_(start)
        _expect_near(gradient, direction, wanted, f"`{name}`{where}")


def _direction(like: Tensor) -> Tensor:
    """Return a random direction as long as one of a few numbers, so that steps along it stay small."""
    direction = torch.randn(like.shape, generator=torch.Generator().manual_seed(5)).to(like.device)
    return direction * min(1.0, 10 / float(direction.norm()))


def _weights(outputs: Tensor) -> Tensor:
    return torch.randn(outputs.shape, generator=torch.Generator().manual_seed(4)).to(outputs.device)


def _slope(function: Callable[[float], Tensor]) -> float:
    return float((function(STEP) - function(-STEP)) / (2 * STEP))


def _expect_near(found: Tensor, direction: Tensor, wanted: float, what: str) -> None:
    along = float((found * direction).double().sum())
    scale = max(abs(wanted), 0.05 * float(found.norm() * direction.norm()), 1e-6)
    expect(
        abs(along - wanted) < NEARNESS * scale,
        f"the gradient of {what} along some direction is {along:.4g}, and the outputs change by {wanted:.4g}",
    )
