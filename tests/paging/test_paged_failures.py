"""What fails in a paged step leaves what was done done, and the rest as it was."""

from __future__ import annotations

import copy
import errno
import logging
from typing import Any

import pytest
import schedulefree
import torch
from forked import Nursery
from paged_runs import PAGE, SMALL, Maker, Short, give, groups, parameters, run, same, same_state
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import lorakit
from lorakit.paging import Paged
from lorakit.paging.links import Direct
from lorakit.paging.sides import Arena, MappedFile, PinnedMemory
from lorakit.stepping.ladder import Rung

MAKERS: dict[str, Maker] = {
    "AdamW": lambda given: torch.optim.AdamW(given, lr=1e-2),
    "AdamW over lists": lambda given: torch.optim.AdamW(given, lr=1e-2, foreach=True),
    "SGD with momentum": lambda given: torch.optim.SGD(given, lr=1e-2, momentum=0.9),
    "schedule-free": lambda given: schedulefree.AdamWScheduleFree(given, lr=1e-2),
}
ADAMW = MAKERS["AdamW"]
FEW = ((20, 12), (200,), (7, 9), (90,))


def steps(made: Maker, at: tuple[int, ...], budget: int | None = None) -> tuple[list[nn.Parameter], Paged, int, int]:
    """Take two steps, the second with memory that is short; steps that fail are called again."""
    members = parameters(shapes=FEW)
    optimizer = Paged(made(groups(members)), budget, page_size=PAGE)
    run(optimizer, members, [0])
    give(members, 1)
    failed = 0
    with Short(*at) as short:
        while True:
            try:
                optimizer.step()
                break
            except torch.OutOfMemoryError:
                assert optimizer.is_unfinished
                failed += 1
    assert not optimizer.is_unfinished
    return members, optimizer, short.count, failed


@pytest.mark.parametrize("made", MAKERS.values(), ids=MAKERS)
def test_memory_that_is_short_anywhere_in_a_step(made: Maker) -> None:
    wanted, reference, count, _ = steps(made, ())
    give(wanted, 2)
    reference.step()
    assert count > 3
    for at in range(count):
        members, optimizer, counted, failed = steps(made, (at,))
        assert counted > count and failed <= 1, at
        give(members, 2)
        optimizer.step()
        assert same(members, wanted) and same_state(optimizer, reference), at


@pytest.mark.parametrize("budget", [None, PAGE])
@pytest.mark.parametrize("times", [2, 5])
def test_memory_that_is_short_several_times(times: int, budget: int | None) -> None:
    wanted, reference, count, _ = steps(ADAMW, ())
    failures = 0
    for at in range(0, count, 2):
        members, optimizer, _, failed = steps(ADAMW, tuple(range(at, at + times)), budget)
        failures += failed
        assert same(members, wanted) and same_state(optimizer, reference), at
    assert failures or times == 2


class Scarce(Arena):
    """Gives so many bytes at most, and again what came back."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._given: list[Any] = []

    def allocate(self, size: int) -> Tensor:
        self._given = [(one, held) for one, held in self._given if not one.expired()]
        if sum(held for _, held in self._given) + size > self.most:
            raise torch.OutOfMemoryError("no more, for a test")
        made = super().allocate(size)
        self._given.append((StorageWeakRef(made.untyped_storage()), size))
        return made


def test_pages_leave_where_an_allocation_fails() -> None:
    plain, members = parameters(shapes=SMALL), parameters(shapes=SMALL)
    reference, near = ADAMW(groups(plain)), Scarce(5 * PAGE)
    optimizer = Paged(ADAMW(groups(members)), page_size=PAGE, link=lambda _: Direct(near, MappedFile()))
    assert optimizer.near_bytes == 5 * PAGE and optimizer.far_bytes > 0
    run(reference, plain, range(4))
    run(optimizer, members, range(4))
    assert optimizer.traffic.pages_out > 0
    # somebody else takes nearly all of it
    optimizer.page_out()
    near.most = PAGE
    run(reference, plain, range(4, 8))
    run(optimizer, members, range(4, 8))
    assert optimizer.near_bytes == PAGE
    assert same(members, plain) and same_state(optimizer, reference)
    near.most = 0
    optimizer.page_out()
    give(members, 9, all_of_them=True)
    with pytest.raises(torch.OutOfMemoryError, match="no more"):
        optimizer.step()
    near.most = 5 * PAGE
    give(plain, 9, all_of_them=True)
    optimizer.step()
    reference.step()
    assert same(members, plain) and same_state(optimizer, reference)


class Full(MappedFile):
    """A file on a disk with room for so many pages."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def allocate(self, size: int) -> Tensor:
        if size > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= size
        return super().allocate(size)


def test_a_full_disk_is_an_error_before_anything_moves() -> None:
    members = parameters(shapes=SMALL)
    with pytest.raises(lorakit.WriteError, match="no room for [0-9,]+ bytes of optimizer state.*No space left"):
        Paged(ADAMW(groups(members)), 2 * PAGE, page_size=PAGE, link=lambda _: Direct(Arena(), Full(3 * PAGE)))


def test_a_group_without_room_is_not_added() -> None:
    plain, members = parameters(shapes=SMALL), parameters(shapes=SMALL)
    reference, disk = ADAMW(plain[:10]), Full(64 * PAGE)
    optimizer = Paged(ADAMW(members[:10]), 4 * PAGE, page_size=PAGE, link=lambda _: Direct(Arena(), disk))
    disk.room = 0
    with pytest.raises(lorakit.WriteError, match="No space left"):
        optimizer.add_param_group({"params": members[10:]})
    assert len(optimizer.param_groups) == 1
    run(reference, plain, range(4))
    run(optimizer, members, range(4))
    assert same(members, plain) and same_state(optimizer, reference)


def test_a_disk_that_is_full_later_leaves_state_near() -> None:
    plain, members = parameters(shapes=SMALL), parameters(shapes=SMALL)
    reference = ADAMW(groups(plain))
    disk = Full(3 * PAGE)
    optimizer = Paged(ADAMW(groups(members)), page_size=PAGE, link=lambda _: Direct(Arena(), disk))
    run(reference, plain, range(3))
    run(optimizer, members, range(3))
    with pytest.raises(lorakit.WriteError, match="No space left"):
        optimizer.page_out()
    assert optimizer.far_bytes == 3 * PAGE
    run(reference, plain, range(3, 6))
    run(optimizer, members, range(3, 6))
    assert same(members, plain) and same_state(optimizer, reference)


def test_a_step_goes_on_without_paging_where_the_disk_is_full() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 4))
    batch = (torch.randn(6, 20), torch.randint(4, (6,)))
    said: list[str] = []
    results = []
    for failing in ((), (4, 8)):
        model = copy.deepcopy(net)
        optimizer = Paged(ADAMW(model.parameters()), page_size=PAGE, link=lambda _: Direct(Arena(), Full(0)))
        step = lorakit.Step(model, optimizer, nn.functional.cross_entropy, say=said.append)
        losses = [float(step(batch))]
        with Short(*failing):
            losses.append(float(step(batch)))
        results.append((losses, [*model.parameters()], optimizer, [climb.rung for climb in step.climbs]))
    (losses, wanted, reference, _), (mine, members, optimizer, rungs) = results
    assert rungs == [Rung.SEND] and "no room for" in said[0] and "nothing has moved" in said[0]
    assert mine == losses and same(members, wanted) and same_state(optimizer, reference)


LIMITED = """
import resource, signal, tempfile, torch, lorakit
from lorakit.paging import Paged
from torch import nn

def run(limited):
    torch.manual_seed(0)
    members = [nn.Parameter(torch.randn(64, 64)) for _ in range(8)]
    optimizer = Paged(torch.optim.AdamW(members, lr=1e-2), page_size=1 << 16)
    for number in range(4):
        for index, one in enumerate(members):
            one.grad = torch.full_like(one, 0.1 * number + index)
        optimizer.step()
        if limited and number == 1:
            # room for two pages of eight
            resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 16, resource.RLIM_INFINITY))
            try:
                optimizer.page_out()
            except lorakit.WriteError as error:
                print(error)
            print(optimizer.far_bytes >> 16)
    return members

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
whole, limited = run(False), run(True)
print(all(map(torch.equal, whole, limited)))
try:
    Paged(torch.optim.AdamW(limited), 1 << 17, page_size=1 << 16)
except lorakit.WriteError as error:
    print(error)
"""


def test_a_file_that_may_not_grow_leaves_state_where_it_is(nursery: Nursery) -> None:
    child = nursery.start(LIMITED)
    assert child.wait() == 0, child.err
    refused, far, is_same, before_any_step = child.out.splitlines()
    assert refused.startswith("paged: no room for 65,536 bytes of optimizer state to leave to: [Errno 27]")
    assert (far, is_same) == ("2", "True")
    assert before_any_step.startswith("paged: no room for ") and before_any_step.endswith("nothing has moved")


def test_pinned_memory_that_is_refused_gives_plain_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = torch.empty

    def refusing(*arguments: Any, pin_memory: bool = False, **others: Any) -> Tensor:
        if pin_memory:
            raise RuntimeError("CUDA error: OS call failed")
        return plain(*arguments, **others)

    monkeypatch.setattr(torch, "empty", refusing)
    pinned = PinnedMemory()
    with caplog.at_level(logging.WARNING):
        assert [pinned.allocate(size).numel() for size in (8, 16)] == [8, 16]
    assert caplog.text.count("no pinned memory (CUDA error: OS call failed)") == 1


def test_a_budget_below_one_parameters_state_is_refused() -> None:
    members = parameters()
    least = Paged(ADAMW(groups(members)), page_size=PAGE).least_budget
    with pytest.raises(lorakit.ModelError, match=f"no room for a page of {least:,}.*give at least that"):
        Paged(ADAMW(groups(members)), least - 1, page_size=PAGE)
    Paged(ADAMW(groups(members)), least, page_size=PAGE)


class GlobalNorm(torch.optim.SGD):
    """Clips by the norm of all gradients in its step."""

    def step(self, closure: Any = None) -> Any:
        torch.nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 1.0)
        return super().step(closure)


class CountsValues(torch.optim.SGD):
    """Keeps in a group what it learns from all of its parameters."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["seen"] = sum(float(p.grad.abs().sum()) for p in group["params"] if p.grad is not None)
        return super().step(closure)


class NeedsAll(torch.optim.SGD):
    """Cannot do with a part of its parameters."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            torch.stack([p.grad.norm() for p in group["params"] if p.grad is not None])
        return super().step(closure)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (torch.optim.LBFGS, "LBFGS computes the loss several times in a step, so its state cannot page"),
        (GlobalNorm, "GlobalNorm takes its parameters together, .*: its steps differ when they are taken one"),
        (CountsValues, "CountsValues takes its parameters together, .*: its `seen` is [0-9.]+ by some"),
        (NeedsAll, "NeedsAll takes its parameters together, .*: a step on some of them gives RuntimeError: stack"),
    ],
)
def test_an_optimizer_that_takes_parameters_together_is_refused_by_name(made: Any, said: str) -> None:
    members = parameters(shapes=SMALL)
    given = members if made is torch.optim.LBFGS else groups(members)
    with pytest.raises(lorakit.ModelError, match=said):
        lorakit.paged(made(given))


class LateCoupling(torch.optim.SGD):
    """Learns something from all parameters, but only after many steps."""

    count = 0

    def step(self, closure: Any = None) -> Any:
        self.count += 1
        if self.count > 7:
            gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            self.param_groups[0]["largest"] = max((float(one.abs().max()) for one in gradients), default=0.0)
        return super().step(closure)


def test_what_couples_parameters_later_is_found_then() -> None:
    members = parameters(shapes=SMALL)
    optimizer = Paged(LateCoupling(groups(members), lr=1e-2, momentum=0.9), 3 * PAGE, page_size=PAGE)
    for number in range(7):
        give(members, number)
        optimizer.step()
    give(members, 7)
    with pytest.raises(lorakit.ModelError, match="LateCoupling couples parameters: its `largest` is"):
        optimizer.step()


class Wrapped(torch.Tensor):
    """A tensor of a class of its own."""


class KeepsWrapped(torch.optim.SGD):
    """Keeps what no page can hold."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.state[parameter]["mean"] = parameter.grad.clone().as_subclass(Wrapped)
        return None


def test_a_tensor_that_no_page_can_hold_is_named() -> None:
    members = parameters(shapes=FEW)
    optimizer = lorakit.paged(KeepsWrapped(groups(members)))
    give(members, 0)
    with pytest.raises(lorakit.ModelError, match="`mean` is a Wrapped, which no page can hold"):
        optimizer.step()


def test_a_sharded_parameter_is_refused_before_any_step() -> None:
    parameter = nn.Parameter(torch.ones(4).as_subclass(Wrapped))
    with pytest.raises(lorakit.ModelError, match="a parameter is a Wrapped, whose state no page can hold"):
        lorakit.paged(torch.optim.SGD([parameter], lr=0.1))


def test_a_switch_of_weights_goes_on_where_memory_ran_short() -> None:
    plain, members = parameters(shapes=SMALL), parameters(shapes=SMALL)
    made = MAKERS["schedule-free"]
    reference: Any = made(groups(plain))
    optimizer: Any = Paged(made(groups(members)), PAGE, page_size=PAGE)
    run(reference, plain, range(3))
    run(optimizer, members, range(3))
    reference.eval()
    failed = 0
    with Short(*range(20, 27)):
        for _ in range(9):
            try:
                optimizer.eval()
                break
            except torch.OutOfMemoryError:
                failed += 1
    assert failed and same(members, plain)
    reference.train()
    optimizer.train()
    assert same(members, plain) and same_state(optimizer, reference)


def test_paged_twice_is_refused() -> None:
    once = lorakit.paged(ADAMW(groups(parameters())))
    with pytest.raises(lorakit.ModelError, match="pages already"):
        lorakit.paged(once)
