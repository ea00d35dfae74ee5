"""Steps that stop half-way: undone where copies were taken, and told where an optimizer gave no reason for any."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from paged_runs import PAGE, SMALL, Short, give, groups, parameters, same, same_state
from torch import nn

import lorakit
from lorakit.paging import Paged


class Stopped(torch.optim.SGD):
    """Is stopped at one parameter, once it has changed it; it asks for memory in each step, unless it is `quiet`."""

    at: nn.Parameter | None = None
    quiet = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        if not self.quiet:
            torch.zeros(1)
        for group in self.param_groups:
            group["lr"] *= 0.5
        if any(self.at is parameter for group in self.param_groups for parameter in group["params"]):
            raise KeyboardInterrupt


def test_a_step_that_is_stopped_goes_on_or_is_given_up() -> None:
    plain, members = parameters(shapes=SMALL), parameters(shapes=SMALL)
    reference = Stopped(groups(plain), lr=1e-2, momentum=0.9)
    wrapped = Stopped(groups(members), lr=1e-2, momentum=0.9)
    optimizer = Paged(wrapped, 2 * PAGE, page_size=PAGE)
    losses: list[float] = []

    def closure() -> float:
        losses.append(1.5)
        return losses[-1]

    for one, given in ((reference, plain), (optimizer, members)):
        give(given, 0, all_of_them=True)
        one.step()
    wrapped.at = members[11]
    give(members, 1, all_of_them=True)
    before = members[11].detach().clone()
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert optimizer.is_unfinished and same([members[11]], [before])
    wrapped.at = None
    assert optimizer.step(closure) == 1.5 and len(losses) == 1
    give(plain, 1, all_of_them=True)
    reference.step()
    assert same(members, plain) and same_state(optimizer, reference)

    wrapped.at = members[11]
    give(members, 2, all_of_them=True)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    optimizer.zero_grad()
    assert not optimizer.is_unfinished


class StoppedQuiet(Stopped):
    quiet = True


@pytest.mark.parametrize("budget", [None, 4 * PAGE])
def test_a_step_for_which_nothing_was_copied_does_not_go_on_from_half_way(budget: int | None) -> None:
    plain, members = parameters(shapes=SMALL), parameters(shapes=SMALL)
    reference = StoppedQuiet(groups(plain), lr=1e-2, momentum=0.9)
    wrapped = StoppedQuiet(groups(members), lr=1e-2, momentum=0.9)
    optimizer = Paged(wrapped, budget, page_size=PAGE)
    for number in range(2):
        for one, given in ((reference, plain), (optimizer, members)):
            give(given, number, all_of_them=True)
            one.step()
    assert same(members, plain)
    wrapped.at = members[11]
    give(members, 2, all_of_them=True)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    wrapped.at = None
    with pytest.raises(lorakit.ModelError, match="half-way.*last checkpoint"):
        optimizer.step()
    optimizer.zero_grad()
    give(members, 3, all_of_them=True)
    optimizer.step()


class AsksLate(torch.optim.SGD):
    """Asks for memory in its ninth step, before it changes anything or after."""

    late = False
    count = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self.count += 1
        if self.count == 9 and not self.late:
            torch.zeros(1)
        super().step(closure)
        if self.count == 9 and self.late:
            torch.zeros(1)


class AsksLater(AsksLate):
    late = True


@pytest.mark.parametrize("made", [AsksLate, AsksLater])
def test_memory_that_is_short_where_none_was_asked_for(made: type[AsksLate]) -> None:
    plain, members = parameters(), parameters()
    reference = made(groups(plain), lr=1e-2, momentum=0.9)
    optimizer = Paged(made(groups(members), lr=1e-2, momentum=0.9), page_size=PAGE)
    for number in range(9):
        give(plain, number, all_of_them=True)
        give(members, number, all_of_them=True)
        reference.step()
        with Short(*[0] * (number == 8)):
            if number == 8 and made is AsksLater:
                with pytest.raises(lorakit.ModelError, match="half-way"):
                    optimizer.step()
                return
            optimizer.step()
    assert same(members, plain)
