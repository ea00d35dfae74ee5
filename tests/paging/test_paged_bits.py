"""A paged optimizer steps as the one it wraps, to the bit, whatever the budget."""

from __future__ import annotations

import copy
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from paged_runs import PAGE, SMALL, Late, Maker, give, groups, parameters, run, same, same_state, sizes
from transformers.optimization import Adafactor as TransformersAdafactor

import lorakit
from lorakit.paging import Paged
from lorakit.paging.links import Direct
from lorakit.paging.sides import Arena, MappedFile

OPTIMIZERS: dict[str, Maker] = {
    "AdamW": lambda given: torch.optim.AdamW(given, lr=1e-2),
    "AdamW in one kernel": lambda given: torch.optim.AdamW(given, lr=1e-2, fused=True),
    "AdamW over lists": lambda given: torch.optim.AdamW(given, lr=1e-2, foreach=True),
    "Adam with amsgrad": lambda given: torch.optim.Adam(given, lr=1e-2, amsgrad=True),
    "SGD with momentum": lambda given: torch.optim.SGD(given, lr=1e-2, momentum=0.9, nesterov=True),
    "SGD": lambda given: torch.optim.SGD(given, lr=1e-2),
    "RMSprop": lambda given: torch.optim.RMSprop(given, lr=1e-3, momentum=0.5, centered=True),
    "Adafactor": lambda given: torch.optim.Adafactor(given, lr=1e-2),
    "transformers' Adafactor": lambda given: TransformersAdafactor(given),
    "bitsandbytes' AdamW8bit": lambda given: bnb.optim.AdamW8bit(given, lr=1e-2),
    "bitsandbytes' Lion": lambda given: bnb.optim.Lion(given, lr=1e-2),
}
ADAMW = OPTIMIZERS["AdamW"]
# the state of (64, 80) in float32, which has a page of its own
LARGEST = 11 * PAGE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("made", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_steps_are_those_of_the_wrapped_optimizer(made: Maker, dtype: torch.dtype) -> None:
    plain, wanted = parameters(dtype), None
    reference = made(groups(plain))
    run(reference, plain, range(8))
    whole, largest = sizes(made, dtype)
    for budget in (None, whole, max(largest, whole // 2), largest):
        members = parameters(dtype)
        optimizer = Paged(made(groups(members)), budget, page_size=PAGE)
        run(optimizer, members, range(8))
        assert same(members, plain), budget
        assert same_state(optimizer, reference), budget
        assert budget is None or optimizer.near_bytes <= budget
        assert bool(optimizer.traffic.pages_out) == (budget is not None and budget < whole)
        wanted = wanted or optimizer.traffic
    assert wanted is not None and wanted.bytes_in == 0


@pytest.mark.parametrize("pages", [1, 2, 3, 4, 9])
def test_copies_that_are_late_are_waited_for(pages: int) -> None:
    plain, members = parameters(shapes=SMALL), parameters(shapes=SMALL)
    reference = ADAMW(groups(plain))
    run(reference, plain, range(8))
    optimizer = Paged(ADAMW(groups(members)), pages * PAGE, page_size=PAGE, link=Late)
    run(optimizer, members, range(8))
    assert optimizer.traffic.pages_in > 20
    assert same(members, plain) and same_state(optimizer, reference)


def test_a_step_waits_for_no_copy() -> None:
    members, link = parameters(shapes=SMALL), Late()
    optimizer = Paged(ADAMW(groups(members)), 4 * PAGE, page_size=PAGE, link=lambda _: link)
    run(optimizer, members, range(6))
    assert optimizer.traffic.pages_in > 10 and link.waits == 0
    assert optimizer.state and link.waits > 0


def test_half_the_state_moves_where_half_of_it_fits() -> None:
    members = [torch.nn.Parameter(torch.randn(480)) for _ in range(16)]
    optimizer = Paged(ADAMW(members), 8 * PAGE, page_size=PAGE)
    for number in range(2):
        give(members, number, all_of_them=True)
        optimizer.step()
    before = copy.copy(optimizer.traffic)
    for number in range(2, 6):
        give(members, number, all_of_them=True)
        optimizer.step()
    moved = optimizer.traffic
    # each holds one page; what was used last in a step is used first in the next
    assert moved.pages_in - before.pages_in == moved.pages_out - before.pages_out == 4 * 8


def test_pages_without_a_gradient_do_not_move() -> None:
    members = [torch.nn.Parameter(torch.randn(480)) for _ in range(8)]
    optimizer = Paged(ADAMW(members), 2 * PAGE, page_size=PAGE)
    give(members, 0, all_of_them=True)
    optimizer.step()
    optimizer.page_out()
    before = copy.copy(optimizer.traffic)
    for parameter in members[1:]:
        parameter.grad = None
    optimizer.step()
    assert optimizer.traffic.pages_in - before.pages_in == 1


def test_state_is_allocated_before_the_first_step() -> None:
    members = parameters()
    optimizer = Paged(ADAMW(groups(members)), page_size=PAGE)
    before = optimizer.near_bytes
    assert before > 0 and not optimizer.state
    run(optimizer, members, range(3))
    assert optimizer.near_bytes == before
    storages = {value.untyped_storage().nbytes() for held in optimizer.state.values() for value in held.values()}
    assert storages == {PAGE, LARGEST}


def test_state_that_is_out_can_be_looked_at() -> None:
    plain, members = parameters(), parameters()
    reference, optimizer = ADAMW(groups(plain)), Paged(ADAMW(groups(members)), page_size=PAGE, link=Late)
    run(reference, plain, range(3))
    run(optimizer, members, range(3))
    whole = optimizer.near_bytes
    assert optimizer.page_out() == whole == optimizer.far_bytes and optimizer.near_bytes == 0
    for mine, theirs in zip(members, plain, strict=True):
        assert same(list(optimizer.state[mine].values()), list(reference.state[theirs].values()))
    run(reference, plain, range(3, 6))
    run(optimizer, members, range(3, 6))
    assert same(members, plain) and same_state(optimizer, reference)


@pytest.mark.parametrize("made", [ADAMW, *map(OPTIMIZERS.get, ("SGD with momentum", "bitsandbytes' AdamW8bit"))])
def test_checkpoints_move_between_paged_and_unpaged(made: Maker) -> None:
    plain = parameters()
    reference = made(groups(plain))
    run(reference, plain, range(3))
    saved = copy.deepcopy(reference.state_dict())
    weights = [parameter.detach().clone() for parameter in plain]
    run(reference, plain, range(3, 6))

    members = [torch.nn.Parameter(value.clone()) for value in weights]
    optimizer = Paged(made(groups(members)), LARGEST, page_size=PAGE)
    optimizer.load_state_dict(copy.deepcopy(saved))
    run(optimizer, members, range(3, 5))
    back = optimizer.state_dict()
    optimizer.page_out()

    others = [torch.nn.Parameter(parameter.detach().clone()) for parameter in members]
    unpaged = made(groups(others))
    unpaged.load_state_dict(back)
    run(unpaged, others, range(5, 6))
    run(optimizer, members, range(5, 6))
    assert same(others, plain) and same(members, plain)
    assert same_state(unpaged, reference) and same_state(optimizer, reference)


def test_state_dicts_hold_tensors_of_their_own() -> None:
    members = parameters()
    optimizer = Paged(ADAMW(groups(members)), LARGEST, page_size=PAGE)
    run(optimizer, members, range(2))
    first = optimizer.state_dict()
    kept = copy.deepcopy(first)
    run(optimizer, members, range(2, 4))
    assert same(list(first["state"][4].values()), list(kept["state"][4].values()))
    assert all(value.untyped_storage().nbytes() == value.nbytes for value in first["state"][4].values())


def test_a_state_dict_of_other_groups_is_refused() -> None:
    optimizer = Paged(ADAMW(groups(parameters())), page_size=PAGE)
    with pytest.raises(ValueError, match="parameter group"):
        optimizer.load_state_dict(ADAMW(parameters()).state_dict())


def test_a_state_dict_of_another_optimizer_is_refused_by_what_it_keeps() -> None:
    members, others = parameters(), parameters()
    # what `paged` was on CUDA before, and kept in checkpoints
    earlier = bnb.optim.AdamW(groups(others), lr=1e-2)
    run(earlier, others, range(2))
    optimizer = Paged(ADAMW(groups(members)), page_size=PAGE)
    run(optimizer, members, range(2))
    before = optimizer.state_dict()
    with pytest.raises(lorakit.ModelError, match="it keeps state1, state2 for a parameter, and AdamW step, exp_avg"):
        optimizer.load_state_dict(earlier.state_dict())
    assert same(list(optimizer.state_dict()["state"][4].values()), list(before["state"][4].values()))
    run(optimizer, members, range(2, 4))


def test_a_group_that_comes_later_pages_too() -> None:
    plain, members = parameters(), parameters()
    reference = torch.optim.AdamW(plain[:4], lr=1e-2)
    optimizer = Paged(torch.optim.AdamW(members[:4], lr=1e-2), LARGEST, page_size=PAGE)
    run(reference, plain, range(2))
    run(optimizer, members, range(2))
    before = optimizer.near_bytes + optimizer.far_bytes
    reference.add_param_group({"params": plain[4:8]})
    optimizer.add_param_group({"params": members[4:8]})
    between = optimizer.near_bytes + optimizer.far_bytes
    reference.add_param_group({"params": plain[8:], "lr": 0.5})
    optimizer.add_param_group({"params": members[8:], "lr": 0.5, "paged": False})
    assert before < between == optimizer.near_bytes + optimizer.far_bytes
    run(reference, plain, range(2, 6))
    run(optimizer, members, range(2, 6))
    assert same(members, plain) and same_state(optimizer, reference)


def test_an_optimizer_with_state_pages_from_then_on() -> None:
    plain, members = parameters(), parameters()
    reference, wrapped = ADAMW(groups(plain)), ADAMW(groups(members))
    run(reference, plain, range(6))
    run(wrapped, members, range(3))
    optimizer = lorakit.paged(wrapped, budget=64 << 20)
    assert isinstance(optimizer, torch.optim.Optimizer) and optimizer.param_groups is wrapped.param_groups
    run(optimizer, members, range(3, 6))
    assert same(members, plain) and same_state(optimizer, reference)


def test_state_follows_parameters_to_another_device() -> None:
    plain, members = parameters(shapes=SMALL), parameters(shapes=SMALL)
    reference, optimizer = ADAMW(groups(plain)), Paged(ADAMW(groups(members)), 3 * PAGE, page_size=PAGE)
    run(reference, plain, range(3))
    run(optimizer, members, range(3))
    # a CPU under another name, so that the pages are those of a device where no parameter is any more
    left = torch.device("cpu", 0)
    pools = optimizer._layout._pools
    pools[left] = pools.pop(torch.device("cpu"))
    for page in pools[left]._pages:
        page.device = left
    run(reference, plain, range(3, 7))
    run(optimizer, members, range(3, 7))
    assert same(members, plain) and same_state(optimizer, reference)
    assert not pools[left].near_bytes and not pools[left].far_bytes and optimizer.near_bytes == 3 * PAGE


class Shifting(torch.optim.Optimizer):
    """Keeps its state in a list, gives it another tensor in each step, and one more from the third step on."""

    def __init__(self, given: Any) -> None:
        super().__init__(given, {"lr": 1e-2})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                state.setdefault("count", 0)
                held = state.setdefault("means", [torch.zeros_like(parameter)])
                held[0] = 0.9 * held[0] + parameter.grad
                state["count"] += 1
                if state["count"] == 3:
                    held.append(held[0].double().mean(-1, keepdim=True))
                parameter.sub_(held[-1].to(parameter.dtype), alpha=group["lr"])


@pytest.mark.parametrize("budget", [None, 2 * PAGE])
def test_state_that_changes_its_shape_finds_other_pages(budget: int | None) -> None:
    plain, members = parameters(shapes=SMALL), parameters(shapes=SMALL)
    reference, optimizer = Shifting(groups(plain)), Paged(Shifting(groups(members)), budget, page_size=PAGE)
    run(reference, plain, range(8))
    run(optimizer, members, range(8))
    assert same(members, plain) and same_state(optimizer, reference)
    assert budget is None or optimizer.far_bytes > 0


class Noisy(torch.optim.SGD):
    """Adds random numbers to its steps."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.add_(torch.randn_like(parameter.grad))
        return super().step(closure)


def test_random_numbers_are_drawn_in_one_order() -> None:
    results = []
    for budget in (0, None, LARGEST):
        members = parameters()
        optimizer: Any = Noisy(groups(members), lr=1e-2, momentum=0.9)
        optimizer = optimizer if budget == 0 else Paged(optimizer, budget, page_size=PAGE)
        torch.manual_seed(5)
        for number in range(4):
            give(members, number)
            optimizer.step()
        results.append(members)
    assert same(results[1], results[0]) and same(results[2], results[0])


def test_the_far_side_may_be_a_file_in_any_folder(tmp_path: Any) -> None:
    plain, members = parameters(), parameters()
    reference = ADAMW(groups(plain))
    optimizer = Paged(
        ADAMW(groups(members)), LARGEST, page_size=PAGE, link=lambda _: Direct(Arena(), MappedFile(str(tmp_path)))
    )
    run(reference, plain, range(3))
    run(optimizer, members, range(3))
    assert same(members, plain)
    # without a name nothing of it is left, however the process ends
    assert not list(tmp_path.iterdir())
