"""Steps in which memory runs out: what they do again, in which order, and that no bit of what comes of it differs."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from running_out import Allocations, Full
from torch import Tensor, nn
from torch.nn import functional

import lorakit
from helpers import make_llama
from lorakit.stepping import sending
from lorakit.stepping.ladder import Rung
from lorakit.stepping.sending import Sending

SPEC = "adapt q_proj,v_proj,down_proj rank 2 quant nf4 double dropout 0.1\noptimizer adamw lr 1e-2"
PLAIN = "adapt q_proj,v_proj,down_proj rank 2\noptimizer adamw lr 1e-2"


@pytest.fixture(autouse=True, scope="module")
def little_to_collect() -> Iterator[None]:
    """Have the collector pass over all that the imports made: it runs whenever memory is out."""
    Run().steps()
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def sends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "SMALLEST", 1)


def rows(seed: int, count: int = 2, length: int = 6, ignored: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(0, 128, (count, length), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[0, : 1 + ignored] = -100
    return {"input_ids": ids, "labels": labels}


# two steps of two batches
BATCHES = [[rows(10 * number + one) for one in range(2)] for number in range(2)]


class Run:
    """An adapted model with its optimizer, and what came of steps on it."""

    def __init__(self, spec: str = SPEC, **config: Any) -> None:
        torch.manual_seed(0)
        self.model = lorakit.apply(spec, make_llama(**config)).train()
        self.optimizer = lorakit.optimizer(self.model)
        self.step = lorakit.Step(self.model, self.optimizer, say=lambda line: None)
        self.losses: list[float] = []

    def steps(self) -> Run:
        self.losses += [float(self.step(*batches)) for batches in BATCHES]
        return self

    def learned(self) -> Run:
        """Do forward and backward alone, with no update."""
        for batches in BATCHES:
            self.optimizer.zero_grad()
            self.losses.append(float(self.step.learn(*batches)))
        return self

    @property
    def state(self) -> dict[str, Tensor]:
        trained = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        gradients = {f"{name}.grad": value.grad for name, value in trained.items() if value.grad is not None}
        moments = {
            f"{index}.{name}": value
            for index, kept in self.optimizer.state_dict()["state"].items()
            for name, value in kept.items()
            if isinstance(value, Tensor)
        }
        return {**trained, **gradients, **moments, "generator": torch.get_rng_state()}


def assert_same(one: Run, other: Run) -> None:
    assert one.losses == other.losses
    assert one.state.keys() == other.state.keys()
    assert [name for name, value in one.state.items() if not torch.equal(value, other.state[name])] == []


def peak(batch: Any) -> int:
    """Return the bytes that a step on a batch saves for its backward pass."""
    run, device = Run(PLAIN), Full(1 << 40)
    with device.around(run.model):
        run.step.learn(batch)
    return device.peak


def test_a_split_batch_has_the_gradients_of_the_whole_up_to_rounding() -> None:
    batch = rows(3, count=5, ignored=3)
    one, two = (peak(rows(3, count=count)) for count in (1, 2))
    whole, run = Run(PLAIN), Run(PLAIN)
    loss = float(whole.step.learn(batch))
    # room for a row, and not for two
    device, own = Full((one + two) // 2), run.step._learning

    def in_room(model: nn.Module, part: Any) -> Tensor:
        with device.around(model):
            return own.loss(model, part)

    run.step._learning = Roomy(own, in_room)
    assert float(run.step.learn(batch)) == pytest.approx(loss, rel=1e-6)
    assert [climb.rung for climb in run.step.climbs if climb.rows == 5] == [Rung.SPLIT]
    expected = {name: value.grad for name, value in whole.model.named_parameters() if value.grad is not None}
    for name, value in run.model.named_parameters():
        if value.requires_grad:
            torch.testing.assert_close(value.grad, expected[name], rtol=1e-4, atol=1e-9)


def test_in_float64_the_parts_of_a_batch_give_its_gradients_to_the_last_digits() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    inputs, targets = torch.randn(7, 6).double(), torch.randint(3, (7,))

    def learned(failing: Sequence[int]) -> tuple[float, list[Tensor | None], int]:
        model = copy.deepcopy(net)
        step = lorakit.Step(
            model, torch.optim.SGD(model.parameters(), 0.1), functional.cross_entropy, say=lambda line: None
        )
        with Allocations(failing) as mode:
            loss = float(step.learn((inputs, targets)))
        assert len(mode.failed) == len(failing)
        assert [climb.rung for climb in step.climbs if climb.rows == 7] == [Rung.SPLIT] * bool(failing)
        return loss, [one.grad for one in model.parameters()], mode.count

    loss, gradients, count = learned(())
    # wherever the first try fails: the next two fail as they begin, then perhaps a half
    for first in range(count):
        for failing in ((first, first + 1, first + 2), tuple(range(first, first + 6))):
            parts, found, _ = learned(failing)
            assert parts == pytest.approx(loss, rel=1e-14)
            for one, other in zip(found, gradients, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


class Roomy:
    """A way to learn whose forward runs in a room of its own."""

    def __init__(self, learning: Any, loss: Any) -> None:
        self._learning, self.loss = learning, loss

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learning, name)


def test_what_a_batch_needed_a_larger_one_is_given_at_once() -> None:
    run = Run(PLAIN)
    batch = rows(0)
    with Allocations((40, 80)):
        run.step.learn(batch)
    assert run.step.climbs[-1].rung == Rung.SEND
    with Sends() as sent:
        run.step.learn(rows(1, length=8))
    assert sent.count and [climb.milliseconds > 0 for climb in run.step.climbs] == [True, False]
    with Sends() as sent:
        run.step.learn(rows(1, length=5))
    assert not sent.count


class Sends:
    """Counts what is sent to the host inside the block."""

    def __enter__(self) -> Sends:
        self.count = 0
        self._patch = pytest.MonkeyPatch()
        send = Sending._send

        def counted(this: Sending, value: Tensor) -> Any:
            self.count += 1
            return send(this, value)

        self._patch.setattr(Sending, "_send", counted)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


@pytest.mark.parametrize(
    ("why", "model", "words"),
    [
        ("dropout", nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1)), "the dropout of `1`"),
        ("batch norm", nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), "own statistics"),
    ],
)
def test_a_batch_that_would_be_another_in_parts_is_not_split(why: str, model: nn.Module, words: str) -> None:
    step = lorakit.Step(model, torch.optim.SGD(model.parameters(), 0.1), functional.mse_loss)
    before = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    batch = (torch.ones(4, 4), torch.ones(4, 1))
    with Allocations(range(1000)), pytest.raises(torch.OutOfMemoryError) as caught:
        step.learn(batch)
    assert words in caught.value.__notes__[0] and "`step batch N tokens N`" in caught.value.__notes__[0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state()) and all(one.grad is None for one in model.parameters())


class Drawing(nn.Module):
    """Draws in its forward, and keeps a count, in ways that no module tells of."""

    def __init__(self, draws: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 1))
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()))
        self.draws = draws

    def forward(self, x: Tensor) -> Tensor:
        if self.draws:
            return (x + torch.rand_like(x)) @ self.weight
        self.seen.add_(len(x))
        return x @ self.weight


@pytest.mark.parametrize("draws", [True, False], ids=["random numbers", "a buffer"])
def test_what_no_module_tells_is_seen_once_a_part_is_done(draws: bool) -> None:
    model = Drawing(draws)
    step = lorakit.Step(model, torch.optim.SGD(model.parameters(), 0.1), functional.mse_loss, say=lambda line: None)
    generator = torch.get_rng_state()
    batch = (torch.ones(4, 4), torch.ones(4, 1))
    # the copy of a buffer comes first, and does not fail
    failing = (0, 1, 2) if draws else (1, 2, 3)
    with Allocations(failing), pytest.raises(torch.OutOfMemoryError, match="cannot be split"):
        step.learn(batch)
    assert torch.equal(generator, torch.get_rng_state()) and not model.seen and model.weight.grad is None


def test_buffers_that_a_forward_changes_are_brought_back_before_it_runs_again() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))
    batch = (torch.randn(6, 4), torch.randn(6, 1))
    results = []
    for failing in ((), (9,), (11,), (9, 14)):
        model = copy.deepcopy(net)
        torch.manual_seed(1)
        step = lorakit.Step(model, torch.optim.SGD(model.parameters(), 0.1), functional.mse_loss, say=lambda line: None)
        with Allocations(failing) as mode:
            loss = step(batch)
        assert len(mode.failed) == len(failing)
        results.append((loss, model.state_dict(), torch.get_rng_state()))
    for loss, state, generator in results[1:]:
        assert loss == results[0][0] and torch.equal(generator, results[0][2])
        assert all(torch.equal(value, results[0][1][name]) for name, value in state.items())


def test_another_error_is_not_tried_again() -> None:
    model = nn.Linear(4, 1)
    step = lorakit.Step(model, torch.optim.SGD(model.parameters(), 0.1), functional.mse_loss)
    tries = []

    def wrong(output: Tensor, target: Tensor) -> Tensor:
        tries.append(1)
        raise RuntimeError("shapes differ")

    step = lorakit.Step(model, torch.optim.SGD(model.parameters(), 0.1), wrong)
    with pytest.raises(RuntimeError, match="shapes differ"):
        step((torch.ones(2, 4), torch.ones(2, 1)))
    assert len(tries) == 1 and not step.climbs


def test_a_rehearsal_leaves_nothing_behind() -> None:
    run, other = Run(), Run()
    before = run.state
    run.step.rehearse(rows(99, count=4, length=9))
    assert run.state.keys() == before.keys() and all(torch.equal(run.state[name], before[name]) for name in before)
    torch.manual_seed(3)
    run.steps()
    torch.manual_seed(3)
    assert_same(run, other.steps())


def test_the_mean_of_several_batches_is_over_all_that_is_learned() -> None:
    run = Run(PLAIN)
    both = {name: torch.cat([rows(1, ignored=2)[name], rows(2)[name]]) for name in rows(1)}
    loss = float(run.step.learn(rows(1, ignored=2), rows(2)))
    gradients = {name: value.grad for name, value in run.model.named_parameters() if value.grad is not None}
    run.optimizer.zero_grad()
    assert float(run.step.learn(both)) == pytest.approx(loss, rel=1e-6)
    for name, value in run.model.named_parameters():
        if value.requires_grad:
            torch.testing.assert_close(value.grad, gradients[name], rtol=1e-4, atol=1e-9)


def test_a_batch_in_which_nothing_is_learned_changes_nothing() -> None:
    run = Run(PLAIN)
    nothing = rows(1)
    nothing["labels"] = torch.full_like(nothing["labels"], -100)
    both, alone = run.step.learn(rows(2), nothing), run.step.learn(rows(2))
    assert both == alone


@pytest.mark.parametrize(
    ("optimizer", "failing"),
    [("adamw", (3, 20, 41)), ("sgd(momentum=0.9)", (3,)), ("adamw paged", (3, 20, 41))],
    ids=["adamw", "sgd", "paged"],
)
def test_an_update_that_ran_out_goes_on_where_it_stood(optimizer: str, failing: tuple[int, ...]) -> None:
    spec = f"adapt q_proj,v_proj rank 2\noptimizer {optimizer} lr 1e-2"
    whole, run = Run(spec), Run(spec)
    for one in (whole, run):
        one.step._max_grad_norm = 1e-3
    whole.steps()
    run.losses.append(float(run.step(*BATCHES[0])))
    run.optimizer.zero_grad()
    run.losses.append(float(run.step.learn(*BATCHES[1])))
    with Allocations(failing) as mode:
        run.step.update()
    assert len(mode.failed) == len(failing)
    assert_same(run, whole)


class Named(nn.Module):
    """Takes a dict, in which rows are not to be told apart."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        output: Tensor = self.layer(x["x"])
        return output


def test_a_batch_whose_rows_are_not_to_be_told_apart_is_learned_from_all_the_same() -> None:
    torch.manual_seed(0)
    model = Named()
    step = lorakit.Step(model, torch.optim.SGD(model.parameters(), 0.1), functional.mse_loss)
    batch = ({"x": torch.randn(3, 4)}, torch.randn(3, 1))
    expected = float(functional.mse_loss(model(batch[0]), batch[1]))
    before = model.layer.weight.detach().clone()
    assert step(batch) == pytest.approx(expected) and not torch.equal(model.layer.weight, before)
