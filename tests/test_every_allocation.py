"""Four whole steps of an adapted model in which memory runs out somewhere: no bit of what comes of them differs.

The short form fails a few allocations of each part of a step. With LORAKIT_EVERY_ALLOCATION set each of them fails, one
at a time and with a second one behind it, which takes a quarter of an hour.
"""

from __future__ import annotations

import copy
import functools
import gc
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from running_out import Allocations
from torch import Tensor, nn

import lorakit
from helpers import make_llama
from lorakit.application.state import state_of
from lorakit.paging import Paged
from lorakit.stepping import sending
from lorakit.stepping.ladder import Rung

EVERY = bool(os.environ.get("LORAKIT_EVERY_ALLOCATION"))
# allocations of each part of a step that fail in the short form
FEW = 1
PAGE = 1 << 10
# where state lies: as the optimizer has it, all of it out between steps, or near as far as there is room
UNPAGED, OUT, BUDGET = "unpaged", "out", "budget"
# by name, the optimizer of a spec, and a rank: bitsandbytes keeps in eight bits what has 4,096 values and more
OPTIMIZERS = {
    "adamw": ("adamw", 2),
    "adamw8bit": ("adamw8bit", 64),
    "sgd": ("sgd(momentum=0.9)", 2),
    "a plugin's": ("schedulefree", 2),
}
# whose frames an allocation is made in, from within
PLACES = {
    "allocate": "page-in", "clipped": "clip", "_do": "update", "backward": "backward", "loss": "forward",
    "take": "before",
}  # fmt: skip


class Placed(Allocations):
    """Notes in which part of a step each allocation is made."""

    def __init__(self, failing: Sequence[int] = ()) -> None:
        super().__init__(failing)
        self.places: list[str] = []

    @property
    def failed_in(self) -> tuple[str, ...]:
        return tuple(self.places[number] for number in sorted(self._failing) if number < self.count)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.count
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self.places += [_place()] * (self.count - before)


def _place() -> str:
    frame: Any = sys._getframe()
    while frame is not None:
        if place := PLACES.get(frame.f_code.co_name):
            return place
        frame = frame.f_back
    return "around"


def rows(seed: int) -> dict[str, Tensor]:
    ids = torch.randint(0, 128, (2, 5), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[0, :2] = -100
    return {"input_ids": ids, "labels": labels}


BATCHES = [rows(number) for number in range(4)]


class Run:
    """An adapted model after four steps, in which allocations of these numbers failed."""

    def __init__(self, name: str, paging: str, failing: Sequence[int] = ()) -> None:
        self.model = copy.deepcopy(adapted(name))
        self.optimizer: Any = lorakit.optimizer(self.model)
        if paging != UNPAGED:
            budget = room(name) if paging == BUDGET else None
            self.optimizer = Paged(self.optimizer, budget, page_size=PAGE, shared=shared_state(self.model))
        torch.manual_seed(0)
        self.step = lorakit.Step(self.model, self.optimizer, max_grad_norm=1e-2, say=lambda line: None)
        self.losses: list[float] = []
        with Placed(failing) as self.memory:
            for batch in BATCHES:
                self.losses.append(float(self.step(batch)))
                if paging == OUT:
                    self.optimizer.page_out()

    @functools.cached_property
    def state(self) -> dict[str, Tensor]:
        """Everything that a step changes."""
        moments = {
            f"{index}.{name}": value
            for index, kept in self.optimizer.state_dict()["state"].items()
            for name, value in kept.items()
            if isinstance(value, Tensor)
        }
        trained = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        gradients = {f"{name}.grad": value.grad for name, value in trained.items() if value.grad is not None}
        buffers = dict(self.model.named_buffers())
        return {**trained, **gradients, **moments, **buffers, "generator": torch.get_rng_state()}


@functools.cache
def adapted(name: str) -> nn.Module:
    """Return the model that runs are made of copies of."""
    optimizer, rank = OPTIMIZERS[name]
    spec = f"adapt q_proj,down_proj rank {rank} quant nf4 double dropout 0.1\noptimizer {optimizer} lr 1e-2"
    return lorakit.apply(spec, make_llama(num_hidden_layers=1)).train()


def shared_state(model: nn.Module) -> Sequence[str]:
    """Return what the optimizer of an adapted model keeps for all parameters together."""
    (adapter,) = state_of(model).used
    return getattr(state_of(model).plugins.optimizer(adapter.plan.optimizer.call), "shared_state", ())


@functools.cache
def room(name: str) -> int:
    """Return the bytes of a third of the state, or of its largest page."""
    model = copy.deepcopy(adapted(name))
    paged = Paged(lorakit.optimizer(model), page_size=PAGE, shared=shared_state(model))
    return max(paged.least_budget, paged.near_bytes // 3)


@functools.cache
def whole(name: str, paging: str) -> Run:
    """Return a run in which nothing failed."""
    run = Run(name, paging)
    assert not run.step.climbs and (paging == UNPAGED or run.optimizer.traffic.pages_in > 2)
    return run


def chosen(places: Sequence[str]) -> list[int]:
    """Return the numbers of allocations to fail: all of them, or a few of each part of a step."""
    if EVERY:
        return list(range(len(places)))
    found = []
    for place in dict.fromkeys(places):
        numbers = [number for number, one in enumerate(places) if one == place]
        found += numbers[len(numbers) // (2 * FEW) :: -(-len(numbers) // FEW)]
    return found


def assert_same(run: Run, reference: Run) -> None:
    assert run.losses == reference.losses
    mine, theirs = run.state, reference.state
    assert mine.keys() == theirs.keys()
    assert [name for name, value in mine.items() if not torch.equal(value, theirs[name])] == []


@pytest.fixture(autouse=True, scope="module")
def little_to_collect() -> Iterator[None]:
    """Have the collector pass over all that the imports made: it runs whenever memory is out."""
    Run("adamw", UNPAGED)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def sends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "SMALLEST", 1)


@pytest.mark.parametrize("paging", [UNPAGED, OUT, BUDGET])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_whichever_allocation_fails_four_steps_are_the_same(name: str, paging: str) -> None:
    reference = whole(name, paging)
    failed = Counter[str]()
    for number in chosen(reference.memory.places):
        run = Run(name, paging, (number,))
        assert len(run.memory.failed) == 1
        assert {climb.rung for climb in run.step.climbs} <= {Rung.AGAIN}, number
        assert_same(run, reference)
        failed[reference.memory.places[number]] += 1
    # within a budget a page takes the place of another
    assert failed.keys() >= {"forward", "backward", "clip", "update", *["page-in"] * (paging == OUT)}
    print(f"\n{name}, {paging}: {failed.total()} allocations failed: {dict(failed)}")


@pytest.mark.parametrize("paging", [UNPAGED, OUT])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pairs_of_failures_change_no_bit(name: str, paging: str) -> None:
    reference = whole(name, paging)
    rungs, pairs = Counter[str](), Counter[tuple[str, ...]]()
    for index, first in enumerate(chosen(reference.memory.places)):
        # near and far behind: in the same try, the next, or another part of the step
        run = Run(name, paging, (first, first + 1 + index * 37 % 160))
        assert_same(run, reference)
        rungs.update(climb.rung.name for climb in run.step.climbs)
        pairs[run.memory.failed_in] += 1
    assert "AGAIN" in rungs and rungs.keys() <= {"AGAIN", "PAGE", "SEND"}
    print(f"\n{name}, {paging}: {pairs.total()} pairs of {len(pairs)} kinds, rungs {dict(rungs)}")
