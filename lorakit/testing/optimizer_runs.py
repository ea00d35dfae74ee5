"""Checks of an optimizer over several steps of gradients that change: what it keeps, and what its options do."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor, nn

from lorakit.hooks.options import Option, options_of
from lorakit.testing.checks import Check, expect, variants_of
from lorakit.testing.subjects import Subject, same_bits

STEPS = 4
# before and after a state dict: past what warms up in a dozen steps, and what comes round every hundred or two hundred
EARLIER, LATER = 110, 110
# the rate rises over so many of them and then falls, as schedules have it
RISING = 30
# few values and many, even and odd, of one dimension to three
SHAPES = ((8, 12), (5,), (64, 80), (1,), (131, 173), (3, 5, 7))
DTYPES: Mapping[str, tuple[torch.dtype, Mapping[str, Any]]] = {
    "fp32": (torch.float32, {}),
    "bf16": (torch.bfloat16, {}),
}
# the sizes that gradients have in turn
SIZES = (0.25, 1.0, 4.0, 1e3)
# what a number may be changed to, from the least change to the most, and what may stand where none does
OTHERS = (
    lambda v: 0.5 * v, lambda v: 2 * v, lambda v: 0.1 + v, lambda v: 1e6 * v, lambda v: 0.0, lambda v: 0.9,
    lambda v: 1 + v, lambda v: 10 + v,
)  # fmt: skip
NUMBERS = (0.5, 1e-3, 0.1, 0.9, 2, 1, 1e-6)


def run_checks(subject: Subject) -> Iterator[Check]:
    """Yield the checks of runs."""
    options = [option for option in _options(subject.plugin) if option.default is not MISSING]
    # a fault may hide behind an option that is off unless it is given
    cases = {
        **DTYPES,
        **{f"{name}-{value}": (torch.float32, {name: value}) for name, value in _given(subject, options)},
    }
    yield from variants_of(gradients_untouched, subject, cases)
    yield from variants_of(resumes_from_a_file, subject, cases)
    parts = {f"{option.name}{part}": (option, index) for option in options for part, index in _parts(option)}
    if parts:
        yield from variants_of(option_effect, subject, parts)


def gradients_untouched(subject: Subject, dtype: torch.dtype, given: Mapping[str, Any]) -> None:
    """A step leaves the gradients as they are, unless the class says `changes_gradients = True`."""
    if getattr(subject.plugin, "changes_gradients", False):
        return
    parameters = _parameters(dtype)
    optimizer = _built(dataclasses.replace(subject.make(), **given), parameters, subject.plugin.default_lr)
    for number in range(STEPS):
        _give(parameters, number)
        before = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
        optimizer.step()
        after = [parameter.grad for parameter in parameters if parameter.grad is not None]
        expect(len(after) == len(before) and all(map(same_bits, after, before)), "a step changed a gradient in place")


def resumes_from_a_file(subject: Subject, dtype: torch.dtype, given: Mapping[str, Any]) -> None:
    """A run that went on from a state dict in a file gives the same bits, whatever gradients and rates come."""
    made, lr = dataclasses.replace(subject.make(), **given), subject.plugin.default_lr
    first = _parameters(dtype)
    optimizer = _built(made, first, lr)
    for number in range(EARLIER):
        _take_step(optimizer, first, number, lr)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second = [nn.Parameter(parameter.detach().clone()) for parameter in first]
    other = _built(made, second, lr)
    other.load_state_dict(torch.load(file, weights_only=True))
    for number in range(EARLIER, EARLIER + LATER):
        for parameters, runs in ((first, optimizer), (second, other)):
            _take_step(runs, parameters, number, lr)
        expect(
            all(map(same_bits, first, second)),
            f"{number - EARLIER + 1} steps after load_state_dict the weights differ: state_dict() has to hold all of "
            "it, and load_state_dict to bring it back in its own dtype",
        )


def option_effect(subject: Subject, option: Option, part: int | None) -> None:
    """An option has an effect on the weights, at some other value, unless its field's metadata says `"effect": False`.

    Every part of a tuple has one of its own. Where no other value is allowed by itself, nothing is said.
    """
    made = subject.make()
    usual = _run(made, subject.plugin.default_lr)
    value = getattr(made, option.name)
    tried = []
    for other in _others(option.type, value, part):
        try:
            found = _run(dataclasses.replace(made, **{option.name: other}), subject.plugin.default_lr)
        except (ValueError, TypeError, ArithmeticError, RuntimeError):
            continue
        tried.append(other)
        if not all(map(same_bits, found, usual)):
            return
    name = f"`{option.name}`" if part is None else f"`{option.name}[{part}]`"
    expect(not tried, f"{name} has no effect: {value} and {', '.join(map(str, tried))} give the same weights")


def _parts(option: Option) -> list[tuple[str, int | None]]:
    """Return what of an option is to have an effect, with how it is called: every part of a tuple of numbers."""
    if isinstance(option.default, tuple) and len(option.default) > 1 and _is_number(option.default):
        return [(f"-{index}", index) for index in range(len(option.default))]
    return [("", None)]


def _given(subject: Subject, options: Sequence[Option]) -> Iterator[tuple[str, Any]]:
    """Yield every option with the first other value that the plugin takes and can be built with."""
    for option in options:
        try:
            made = subject.make()
            others = _others(option.type, getattr(made, option.name))
        except Exception:
            # other checks say what is wrong with it
            return
        for other in others:
            try:
                _built(dataclasses.replace(made, **{option.name: other}), _parameters(), subject.plugin.default_lr)
            except Exception:
                continue
            yield option.name, other
            break


def _options(plugin: Any) -> list[Option]:
    """Return the options that say of themselves that steps depend on them."""
    try:
        silent = {field.name for field in dataclasses.fields(plugin) if not field.metadata.get("effect", True)}
        return [option for option in options_of(plugin) if option.name not in silent]
    except (AttributeError, TypeError, NameError):
        # no dataclass: the checks that all plugins share say so
        return []


def _others(kind: Any, value: Any, part: int | None = None) -> list[Any]:
    """Return other values of an option than this one, by its type and by what it is now; others in one part alone."""
    arguments = get_args(kind)
    if isinstance(value, bool):
        found: list[Any] = [not value]
    elif isinstance(value, tuple) and _is_number(value):
        places = range(len(value)) if part is None else (part,)
        found = [
            tuple(type(one)(change(one)) if at in places else one for at, one in enumerate(value)) for change in OTHERS
        ]
    elif _is_number(value):
        found = [type(value)(change(value)) for change in OTHERS]
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


def _take_step(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], number: int, lr: float) -> None:
    """Take a step at the rate of a schedule that rises and falls."""
    for group in optimizer.param_groups:
        group["lr"] = lr * min((number + 1) / RISING, 1 - number / (2 * (EARLIER + LATER)))
    _give(parameters, number)
    optimizer.step()


def _give(parameters: Sequence[nn.Parameter], number: int) -> None:
    """Give gradients of other sizes and signs in every step, with zeros among them."""
    generator = torch.Generator().manual_seed(100 + number)
    for parameter in parameters:
        gradient = torch.randn(parameter.shape, generator=generator) * SIZES[number % len(SIZES)]
        kept = torch.rand(parameter.shape, generator=generator) > 0.2
        parameter.grad = (gradient * kept).to(parameter.dtype)
