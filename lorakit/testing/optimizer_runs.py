"""Checks of an optimizer over several steps of gradients that change: what it keeps, and what its options do."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.testing.checks import Check, expect, variants_of
from lorakit.testing.subjects import Subject, same_bits

STEPS = 4
SHAPES = ((8, 12), (5,), (64, 80))
# what a number may be changed to, from the least change to the most
OTHERS = (lambda v: 0.5 * v, lambda v: 2 * v, lambda v: 0.1 + v, lambda v: 1e6 * v, lambda v: 0.0, lambda v: 0.9)


def run_checks(subject: Subject) -> Iterator[Check]:
    """Yield the checks of runs."""
    yield from variants_of(gradients_untouched, subject)
    yield from variants_of(resumes_from_a_file, subject)
    numbers = {
        field.name: (field.name,)
        for field in (dataclasses.fields(subject.plugin) if dataclasses.is_dataclass(subject.plugin) else ())
        if _is_number(field.default)
    }
    if numbers:
        yield from variants_of(option_effect, subject, numbers)


def gradients_untouched(subject: Subject) -> None:
    """A step leaves the gradients as they are, unless the class says `changes_gradients = True`."""
    if getattr(subject.plugin, "changes_gradients", False):
        return
    parameters = _parameters()
    optimizer = _built(subject.make(), parameters, subject.plugin.default_lr)
    for number in range(STEPS):
        _give(parameters, number)
        before = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
        optimizer.step()
        after = [parameter.grad for parameter in parameters if parameter.grad is not None]
        expect(len(after) == len(before) and all(map(same_bits, after, before)), "a step changed a gradient in place")


def resumes_from_a_file(subject: Subject) -> None:
    """A run that went on from a state dict in a file gives the same bits, whatever gradients come."""
    first = _parameters()
    optimizer = _built(subject.make(), first, subject.plugin.default_lr)
    for number in range(STEPS):
        _give(first, number)
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second = [nn.Parameter(parameter.detach().clone()) for parameter in first]
    other = _built(subject.make(), second, subject.plugin.default_lr)
    other.load_state_dict(torch.load(file, weights_only=True))
    for number in range(STEPS, 3 * STEPS):
        for parameters, runs in ((first, optimizer), (second, other)):
            _give(parameters, number)
            runs.step()
        expect(
            all(map(same_bits, first, second)),
            f"{number - STEPS + 1} steps after load_state_dict the weights differ: state_dict() has to hold all of it",
        )


def option_effect(subject: Subject, name: str) -> None:
    """An option that is a number has an effect on the weights, at some other value."""
    made = subject.make()
    usual = _run(made, subject.plugin.default_lr)
    value = getattr(made, name)
    tried = []
    for change in OTHERS:
        other = tuple(map(change, value)) if isinstance(value, tuple) else type(value)(change(value))
        try:
            found = _run(dataclasses.replace(made, **{name: other}), subject.plugin.default_lr)
        except (ValueError, ArithmeticError, RuntimeError):
            continue
        if other != value:
            tried.append(other)
            if not all(map(same_bits, found, usual)):
                return
    expect(not tried, f"`{name}` has no effect: {value} and {', '.join(map(str, tried))} give the same weights")


def _is_number(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(map(_is_number, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def _run(made: Any, lr: float) -> list[Tensor]:
    parameters = _parameters()
    optimizer = _built(made, parameters, lr)
    for number in range(2 * STEPS):
        _give(parameters, number)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def _parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def _built(made: Any, parameters: Sequence[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    built: torch.optim.Optimizer = made.build([{"params": list(parameters), "lr": lr, "paged": False}])
    return built


def _give(parameters: Sequence[nn.Parameter], number: int) -> None:
    """Give gradients of other sizes and signs in every step, with zeros among them."""
    generator = torch.Generator().manual_seed(100 + number)
    for parameter in parameters:
        gradient = torch.randn(parameter.shape, generator=generator) * 4.0 ** (number % 3 - 1)
        parameter.grad = gradient * (torch.rand(parameter.shape, generator=generator) > 0.2)
