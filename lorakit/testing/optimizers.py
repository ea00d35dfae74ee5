"""Checks of an optimizer: what it builds from parameter groups, and what that does."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.dtypes import dtype_of, name_of
from lorakit.errors import LorakitError
from lorakit.paging import Paged
from lorakit.planning.figures import size
from lorakit.testing.causes import require_all, staged
from lorakit.testing.checks import Check, CheckError, expect, variants_of
from lorakit.testing.configured import configured_checks
from lorakit.testing.optimizer_runs import run_checks
from lorakit.testing.subjects import Subject, on_devices, same_bits, subject_of

STEPS = 20
PAGE = 4096
# tensors of a few values and of many, since small ones may be stored otherwise
SHAPES = ((1,), (63,), (4095,), (4096,), (10_000,), (5, 7), (64, 80), (3, 40, 50))


# each takes for granted what those before it ask
STAGES = (
    ("default-lr",),
    ("groups",),
    ("descends", "without-gradient", "gradients-untouched", "state"),
    ("learning-rates", "resumes", "pages", "option-effect"),
    ("resumes-from-a-file",),
)


def optimizer_checks(optimizer_class: type, **options: Any) -> list[Check]:
    """Return every check of an optimizer, configured with these options; each has an `id` and is called."""
    subject = subject_of(optimizer_class, "optimizer", options)
    return staged([*configured_checks(subject), *_step_checks(subject), *run_checks(subject)], STAGES)


def check_optimizer(optimizer_class: type, **options: Any) -> None:
    """Run every check of an optimizer. Raises: CheckError naming each that failed."""
    require_all(f"optimizer {optimizer_class.__name__}", optimizer_checks(optimizer_class, **options))


def _step_checks(subject: Subject) -> Iterator[Check]:
    everywhere = on_devices({"": ()})
    yield from variants_of(default_lr, subject)
    yield from variants_of(groups, subject, everywhere)
    yield from variants_of(descends, subject, on_devices({"fp32": (torch.float32,), "bf16": (torch.bfloat16,)}))
    yield from variants_of(learning_rates, subject, everywhere)
    yield from variants_of(without_gradient, subject, everywhere)
    yield from variants_of(resumes, subject, everywhere)
    yield from variants_of(pages, subject, everywhere)
    kept = {
        f"{'x'.join(map(str, shape))}-{dtype}": (shape, dtype) for shape in SHAPES for dtype in ("float32", "bfloat16")
    }
    yield from variants_of(state, subject, kept)


def default_lr(subject: Subject) -> None:
    """`default_lr`, the learning rate of a spec that gives none, is a positive number on the class."""
    rate = getattr(subject.plugin, "default_lr", None)
    fits = isinstance(rate, float | int) and 0 < rate < math.inf
    expect(fits, f"`default_lr` is {rate!r}; write `default_lr: ClassVar[float] = 1e-4` or the like")


def groups(subject: Subject, device: str) -> None:
    """`build` returns a torch.optim.Optimizer over all parameters, in their groups, each with its own `lr`."""
    first, second = _parameters(device), _parameters(device, seed=1)
    optimizer = _built(subject, [(first, 0.5), (second, 0.25)])
    expect(
        isinstance(optimizer, torch.optim.Optimizer),
        f"`build` returned a {type(optimizer).__name__}, which is no torch.optim.Optimizer",
    )
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    wanted = {id(p): lr for parameters, lr in ((first, 0.5), (second, 0.25)) for p in parameters}
    expect(rates.keys() == wanted.keys(), "the optimizer's groups do not hold just the parameters that were given")
    expect(rates == wanted, "a parameter's learning rate is not the `lr` of its group")


def descends(subject: Subject, dtype: torch.dtype, device: str) -> None:
    """Steps at the default learning rate reduce a quadratic."""
    parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype, device=device)) for shape in ((8, 12), (5,))]
    optimizer = _built(subject, [(parameters, subject.plugin.default_lr)])
    before = _loss(parameters)
    for _ in range(STEPS):
        _step(optimizer, parameters)
    after = _loss(parameters)
    expect(after < before, f"{STEPS} steps took a quadratic from {before:.6g} to {after:.6g}")


def learning_rates(subject: Subject, device: str) -> None:
    """A group whose `lr` is 0, or is set to 0 by a scheduler, stays as it is."""
    still, moving = _parameters(device), _parameters(device, seed=1)
    optimizer = _built(subject, [(still, 0.0), (moving, subject.plugin.default_lr)])
    before = [parameter.detach().clone() for parameter in (*still, *moving)]
    _step(optimizer, [*still, *moving])
    expect(all(map(torch.equal, still, before)), "a group with lr = 0 moved; steps are to be scaled by group['lr']")
    expect(not all(map(torch.equal, moving, before[2:])), "a group with the default learning rate did not move")
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    stopped = [parameter.detach().clone() for parameter in moving]
    _step(optimizer, [*still, *moving])
    expect(all(map(torch.equal, moving, stopped)), "group['lr'] was set to 0 and the group moved: schedulers do so")


def without_gradient(subject: Subject, device: str) -> None:
    """A parameter without a gradient is passed over."""
    used, unused = _parameters(device), _parameters(device, seed=1)
    optimizer = _built(subject, [([*used, *unused], subject.plugin.default_lr)])
    before = [parameter.detach().clone() for parameter in unused]
    _step(optimizer, used)
    expect(all(map(torch.equal, unused, before)), "a parameter whose gradient is None moved")


def resumes(subject: Subject, device: str) -> None:
    """An optimizer with the state dict of another goes on with the same bits."""
    shapes = ((8, 12), (5,), (64, 80))
    first = _parameters(device, shapes=shapes)
    optimizer = _built(subject, [(first, subject.plugin.default_lr)])
    for _ in range(3):
        _step(optimizer, first)
    second = [nn.Parameter(parameter.detach().clone()) for parameter in first]
    other = _built(subject, [(second, subject.plugin.default_lr)])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        _step(optimizer, first)
        _step(other, second)
    expect(
        all(map(same_bits, first, second)),
        "after load_state_dict the steps differ: state_dict() has to hold everything that a step depends on",
    )


def state(subject: Subject, shape: tuple[int, ...], dtype: str) -> None:
    """`state` names the tensors that a step keeps for a parameter, by shape and dtype, so that the forecast holds."""
    parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype_of(dtype))) for _ in range(2)]
    optimizer = _built(subject, [(parameters, subject.plugin.default_lr)])
    _step(optimizer, parameters)
    one, other = (
        {name: value for name, value in optimizer.state[parameter].items() if isinstance(value, Tensor)}
        for parameter in parameters
    )
    held = {name: (tuple(value.shape), name_of(value.dtype)) for name, value in one.items()}
    declared = subject.make().state(shape, dtype)
    expect(isinstance(declared, Mapping), f"`state` returned {declared!r}, which is no mapping")
    expect(
        dict(declared) == held,
        f"`state({shape}, {dtype!r})` is {dict(declared)}, and after a step the state holds {held}",
    )
    shared = {name for name, value in one.items() if value.data_ptr() == other[name].data_ptr()}
    named = {name for name in getattr(subject.plugin, "shared_state", ()) if name in held}
    expect(shared == named, f"`shared_state` names {sorted(named)}, and parameters share {sorted(shared)}")


def _built(subject: Subject, given: Sequence[tuple[Sequence[nn.Parameter], float]]) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer = subject.make().build(
        [{"params": list(parameters), "lr": rate} for parameters, rate in given]
    )
    return made


def pages(subject: Subject, device: str) -> None:
    """With its state in pages that come and go, an optimizer steps with the same bits.

    `couples_parameters = True` on the class owns that it takes parameters together, so that its state cannot page.
    """
    if getattr(subject.plugin, "couples_parameters", False):
        return
    shapes = ((8, 12), (5,), (64, 80), (7, 9), (64, 64), (131,))
    runs = []
    for paged in (False, True):
        parameters = _parameters(device, shapes=shapes)
        optimizer = _built(subject, [(parameters[:3], subject.plugin.default_lr), (parameters[3:], 1e-3)])
        if paged:
            optimizer = _paged(subject, optimizer)
        for number in range(6):
            _step(optimizer, parameters[number % 2 :])
        runs.append(parameters)
    expect(
        all(map(same_bits, *runs)),
        "with its state in pages an optimizer's steps differ: what they keep has to lie in `state`, as plain tensors",
    )


def _paged(subject: Subject, optimizer: torch.optim.Optimizer) -> Paged:
    made = subject.make()

    def state(parameter: nn.Parameter) -> Mapping[str, tuple[tuple[int, ...], str]]:
        declared: Mapping[str, tuple[tuple[int, ...], str]] = made.state(
            tuple(parameter.shape), name_of(parameter.dtype)
        )
        return declared

    largest = max(size(state(one).values()) for group in optimizer.param_groups for one in group["params"])
    budget = largest + PAGE
    try:
        return Paged(optimizer, budget, state=state, page_size=PAGE)
    except LorakitError as error:
        raise CheckError(f"{error}; own it with `couples_parameters: ClassVar[bool] = True` on the class") from error


def _parameters(device: str, seed: int = 0, shapes: Sequence[tuple[int, ...]] = ((8, 12), (5,))) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in shapes]


def _step(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Take a step down ½·Σ(x - 1)²."""
    optimizer.zero_grad()
    for parameter in parameters:
        parameter.grad = parameter.detach() - 1
    optimizer.step()


def _loss(parameters: Sequence[nn.Parameter]) -> float:
    return sum(float((parameter.detach().double() - 1).square().sum()) for parameter in parameters) / 2
