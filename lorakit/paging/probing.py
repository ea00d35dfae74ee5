"""What an optimizer does, seen by running a twin of it on tensors of its own: what it keeps, and whether it pages."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorakit.dtypes import name_of
from lorakit.errors import ModelError
from lorakit.paging.leaves import copied
from lorakit.paging.scene import Scene, narrowed

STEPS = 5
# of gradients, by parameter: where a step takes the norm of all of them, it differs from that of each
SIZES = (30.0, 1e-3)


def unhooked(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    """Return an optimizer's step without the hooks around it: they belong to the whole step, and not to its parts."""
    step: Any = type(optimizer).step
    plain: Callable[[], object] = (step.__wrapped__ if getattr(step, "hooked", False) else step).__get__(optimizer)
    return plain


def check_apart(optimizer: torch.optim.Optimizer) -> bool:
    """Take steps with a twin on two small parameters, together and one at a time, and hold them to the same bits.

    Returns whether the steps draw random numbers. Raises: ModelError if the steps differ.
    """
    name = type(optimizer).__name__
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ModelError(f"paged: {name} computes the loss several times in a step, so its state cannot page")
    chosen = _smallest(optimizer)
    if len(chosen) < len(SIZES):
        return False
    with _aside(optimizer):
        try:
            draws, difference = _compared(optimizer, chosen)
        # whoever wrote it had no part of its parameters in mind, and it fails as code does
        except Exception as error:
            draws, difference = False, f"a step on some of them gives {type(error).__name__}: {error}"
    if difference:
        raise ModelError(f"paged: {name} takes its parameters together, so its state cannot page: {difference}")
    return draws


def _compared(optimizer: torch.optim.Optimizer, chosen: Sequence[tuple[int, nn.Parameter]]) -> tuple[bool, str]:
    """Return whether steps draw random numbers, and how steps together and apart differ; nothing if they do not."""
    together, apart = _Twin(optimizer, chosen), _Twin(optimizer, chosen)
    draws = False
    for number in range(STEPS):
        for twin in (together, apart):
            twin.give(number)
        torch.manual_seed(number)
        before = _generators(optimizer)
        together.step()
        draws = draws or not all(map(torch.equal, before, _generators(optimizer)))
        torch.manual_seed(number)
        difference = apart.step_apart()
        if not difference and not all(map(_same, together.parameters, apart.parameters)):
            difference = "its steps differ when they are taken one parameter at a time"
        if difference:
            return draws, difference
    return draws, ""


def is_quiet(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether steps ask for no memory once the state is there, as those of a twin show."""
    chosen = _smallest(optimizer)
    with _aside(optimizer):
        try:
            twin = _Twin(optimizer, chosen)
            asked = _Asked({parameter.device for parameter in twin.parameters})
            for number in range(STEPS):
                twin.give(number)
                with asked if number else nullcontext():
                    twin.step()
        # as above: it may be one that no mode can look into
        except Exception:
            return False
    return bool(chosen) and not asked.any


class _Asked(TorchDispatchMode):
    """Sees whether an operation gives a tensor of its own on a device."""

    def __init__(self, devices: Collection[torch.device]) -> None:
        super().__init__()
        self._devices = devices
        self.any = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        if not func._schema.is_mutable and not func.is_view:
            self.any |= any(one.device in self._devices for one in tree_leaves(given) if isinstance(one, torch.Tensor))
        return given


def kept_by(optimizer: torch.optim.Optimizer) -> Callable[[nn.Parameter], Mapping[str, tuple[tuple[int, ...], str]]]:
    """Return a function that says what the optimizer keeps for a parameter, by a step of a twin on one like it.

    Where the twin cannot step it says nothing: the first step of the optimizer itself shows it then.
    """
    known: dict[Any, Mapping[str, tuple[tuple[int, ...], str]]] = {}

    def kept(parameter: nn.Parameter) -> Mapping[str, tuple[tuple[int, ...], str]]:
        key = (parameter.shape, parameter.dtype, parameter.device)
        if key not in known:
            with _aside(optimizer):
                known[key] = _kept(optimizer, parameter)
        return known[key]

    return kept


def _kept(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> Mapping[str, tuple[tuple[int, ...], str]]:
    number = next(i for i, group in enumerate(optimizer.param_groups) if any(p is parameter for p in group["params"]))
    try:
        twin = _Twin(optimizer, [(number, parameter)])
        twin.parameters[0].grad = torch.zeros_like(twin.parameters[0])
        twin.step()
    # as above
    except Exception:
        return {}
    return {
        name: (tuple(value.shape), name_of(value.dtype))
        for name, value in twin.optimizer.state[twin.parameters[0]].items()
        if isinstance(value, torch.Tensor) and value.device == parameter.device
    }


class _Twin:
    """An optimizer with the settings of another, over parameters like some of its own."""

    def __init__(self, optimizer: torch.optim.Optimizer, chosen: Sequence[tuple[int, nn.Parameter]]) -> None:
        self.parameters = [nn.Parameter(_numbers(like, 7 + index)) for index, (_, like) in enumerate(chosen)]
        self.optimizer: torch.optim.Optimizer = object.__new__(type(optimizer))
        vars(self.optimizer).update(
            {name: copied(value) if isinstance(value, dict | list) else value for name, value in vars(optimizer).items()
             if name not in ("state", "param_groups")}
        )  # fmt: skip
        self.optimizer.state = defaultdict(dict)
        self.optimizer.param_groups = [
            {**copied({name: value for name, value in group.items() if name != "params"}),
             "params": [own for (index, _), own in zip(chosen, self.parameters, strict=True) if index == number]}
            for number, group in enumerate(optimizer.param_groups)
        ]  # fmt: skip
        self._step = unhooked(self.optimizer)
        if callable(switch := getattr(self.optimizer, "train", None)):
            switch()

    def give(self, number: int) -> None:
        """Give gradients, of sizes that differ."""
        for index, parameter in enumerate(self.parameters):
            parameter.grad = _numbers(parameter, 100 * number + index).mul_(SIZES[(number + index) % 2])

    def step(self) -> None:
        """Take a step."""
        with torch.no_grad():
            self._step()

    def step_apart(self) -> str:
        """Take a step a parameter. Returns how the parts differ in what they leave in the groups; nothing if not."""
        scene, difference = Scene(self.optimizer), ""
        for parameter in self.parameters:
            scene.set()
            with narrowed(self.optimizer.param_groups, self._alone(parameter)):
                self.step()
            difference = difference or scene.differing()
        return difference

    def _alone(self, parameter: nn.Parameter) -> list[list[nn.Parameter]]:
        return [[one for one in group["params"] if one is parameter] for group in self.optimizer.param_groups]


def _smallest(optimizer: torch.optim.Optimizer) -> list[tuple[int, nn.Parameter]]:
    everything: Iterator[tuple[int, nn.Parameter]] = (
        (number, parameter) for number, group in enumerate(optimizer.param_groups) for parameter in group["params"]
    )
    return sorted(everything, key=lambda item: item[1].numel())[: len(SIZES)]


def _numbers(like: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    made = torch.empty_like(like.detach())
    return made.copy_(torch.randn(like.shape, generator=generator))


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.equal(first.detach().nan_to_num(), second.detach().nan_to_num())


def _generators(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in _cuda(optimizer))]


def _cuda(optimizer: torch.optim.Optimizer) -> list[torch.device]:
    devices = {parameter.device: None for group in optimizer.param_groups for parameter in group["params"]}
    return [device for device in devices if device.type == "cuda"]


@contextmanager
def _aside(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Leave the generators of random numbers as they are."""
    with torch.random.fork_rng(_cuda(optimizer)):
        yield
