"""Checks of an optimizer over several steps of gradients that change: what it keeps, and what its options do."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Sequence
from dataclasses import MISSING
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor, nn

from lorakit.hooks.options import Option, options_of
from lorakit.testing.checks import Check, expect, variants_of
from lorakit.testing.subjects import Subject, same_bits

STEPS = 4
# before and after a state dict: past what warms up in a dozen steps
EARLIER, LATER = 17, 17
# few values and many, even and odd
SHAPES = ((8, 12), (5,), (64, 80), (1,), (131, 173))
DTYPES = {"fp32": (torch.float32,), "bf16": (torch.bfloat16,)}
# the sizes that gradients have in turn
SIZES = (0.25, 1.0, 4.0, 1e3)
# what a number may be changed to, from the least change to the most, and what may stand where none does
OTHERS = (lambda v: 0.5 * v, lambda v: 2 * v, lambda v: 0.1 + v, lambda v: 1e6 * v, lambda v: 0.0, lambda v: 0.9)
NUMBERS = (0.5, 1e-3, 0.1, 0.9, 2, 1, 1e-6)


def run_checks(subject: Subject) -> Iterator[Check]:
    """Yield the checks of runs."""
    yield from variants_of(gradients_untouched, subject, DTYPES)
    yield from variants_of(resumes_from_a_file, subject, DTYPES)
    options = {option.name: (option,) for option in _options(subject.plugin) if option.default is not MISSING}
    if options:
        yield from variants_of(option_effect, subject, options)


def gradients_untouched(subject: Subject, dtype: torch.dtype) -> None:
    """A step leaves the gradients as they are, unless the class says `changes_gradients = True`."""
    if getattr(subject.plugin, "changes_gradients", False):
        return
    parameters = _parameters(dtype)
    optimizer = _built(subject.make(), parameters, subject.plugin.default_lr)
    for number in range(STEPS):
        _give(parameters, number)
        before = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
        optimizer.step()
        after = [parameter.grad for parameter in parameters if parameter.grad is not None]
        expect(len(after) == len(before) and all(map(same_bits, after, before)), "a step changed a gradient in place")


def resumes_from_a_file(subject: Subject, dtype: torch.dtype) -> None:
    """A run that went on from a state dict in a file gives the same bits, whatever gradients come."""
    first = _parameters(dtype)
    optimizer = _built(subject.make(), first, subject.plugin.default_lr)
    for number in range(EARLIER):
        _give(first, number)
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second = [nn.Parameter(parameter.detach().clone()) for parameter in first]
    other = _built(subject.make(), second, subject.plugin.default_lr)
    other.load_state_dict(torch.load(file, weights_only=True))
    for number in range(EARLIER, EARLIER + LATER):
        for parameters, runs in ((first, optimizer), (second, other)):
            _give(parameters, number)
            runs.step()
        expect(
            all(map(same_bits, first, second)),
            f"{number - EARLIER + 1} steps after load_state_dict the weights differ: state_dict() has to hold all of "
            "it, and load_state_dict to bring it back in its own dtype",
        )


def option_effect(subject: Subject, option: Option) -> None:
    """An option has an effect on the weights, at some other value, unless its field's metadata says `"effect": False`.

    Where no other value is allowed by itself, nothing is said.
    """
    made = subject.make()
    usual = _run(made, subject.plugin.default_lr)
    value = getattr(made, option.name)
    tried = []
    for other in _others(option.type, value):
        try:
            found = _run(dataclasses.replace(made, **{option.name: other}), subject.plugin.default_lr)
        except (ValueError, TypeError, ArithmeticError, RuntimeError):
            continue
        tried.append(other)
        if not all(map(same_bits, found, usual)):
            return
    expect(not tried, f"`{option.name}` has no effect: {value} and {', '.join(map(str, tried))} give the same weights")


def _options(plugin: Any) -> list[Option]:
    """Return the options that say of themselves that steps depend on them."""
    try:
        silent = {field.name for field in dataclasses.fields(plugin) if not field.metadata.get("effect", True)}
        return [option for option in options_of(plugin) if option.name not in silent]
    except (AttributeError, TypeError, NameError):
        # no dataclass: the checks that all plugins share say so
        return []


def _others(kind: Any, value: Any) -> list[Any]:
    """Return other values of an option than this one, by its type and by what it is now."""
    arguments = get_args(kind)
    if isinstance(value, bool):
        found: list[Any] = [not value]
    elif _is_number(value):
        found = [
            tuple(map(change, value)) if isinstance(value, tuple) else type(value)(change(value)) for change in OTHERS
        ]
    elif value is None and {int, float} & set(arguments):
        found = [number for number in NUMBERS if type(number) in arguments]
    else:
        found = []
    literals = [one for argument in (kind, *arguments) if get_origin(argument) is Literal for one in get_args(argument)]
    return [other for other in (*found, *literals) if other != value]


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


def _parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def _built(made: Any, parameters: Sequence[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    built: torch.optim.Optimizer = made.build([{"params": list(parameters), "lr": lr}])
    return built


def _give(parameters: Sequence[nn.Parameter], number: int) -> None:
    """Give gradients of other sizes and signs in every step, with zeros among them."""
    generator = torch.Generator().manual_seed(100 + number)
    for parameter in parameters:
        gradient = torch.randn(parameter.shape, generator=generator) * SIZES[number % len(SIZES)]
        kept = torch.rand(parameter.shape, generator=generator) > 0.2
        parameter.grad = (gradient * kept).to(parameter.dtype)
