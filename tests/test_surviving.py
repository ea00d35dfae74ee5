"""Trainers whose steps run out of memory: transformers' own, with what lorakit puts around it, and `lorakit train`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from running_out import Allocations
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import lorakit
from helpers import adapters, make_llama
from lorakit.cli.main import app
from lorakit.stepping.ladder import Rung
from lorakit.trainers.needs import Needs, needs_words

LENGTHS = (5, 9, 3, 7, 4, 6)
SPEC = "adapt q_proj,v_proj rank 2 dropout 0.1\noptimizer adamw lr 1e-2"
PLAIN = SPEC.replace(" dropout 0.1", "")
GIB = "CUDA out of memory. Tried to allocate 1.00 GiB."


def rows() -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randint(1, 128, (length,), generator=generator).tolist() for length in LENGTHS]
    return [{"input_ids": ids, "labels": ids, "attention_mask": [1] * len(ids)} for ids in made]


def collate(batch: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    longest = max(len(row["input_ids"]) for row in batch)
    filled = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    return {
        name: torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in batch])
        for name, value in filled.items()
    }


class Calls:
    """Forward passes of a model in training: their sizes, and those that find no memory."""

    def __init__(self, model: Any, fails: Callable[[int, torch.Size], bool]) -> None:
        self.sizes: list[tuple[int, ...]] = []
        self._fails = fails
        model.register_forward_pre_hook(self._enter, with_kwargs=True)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        size = kwargs["input_ids"].shape
        self.sizes.append(tuple(size))
        if self._fails(len(self.sizes) - 1, size):
            raise torch.OutOfMemoryError(GIB)


def trainer(folder: Path, spec: str = SPEC, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    model = lorakit.apply(spec, make_llama())
    arguments = TrainingArguments(
        str(folder), max_steps=3, per_device_train_batch_size=2, report_to="none", logging_steps=1, disable_tqdm=True,
        save_strategy="no", use_cpu=True, seed=1, **settings,
    )  # fmt: skip
    return Trainer(
        model, arguments, train_dataset=rows(), data_collator=collate, optimizers=(lorakit.optimizer(model), None)
    )


def never(call: int, size: torch.Size) -> bool:
    return False


def learned(one: Trainer) -> dict[str, Tensor]:
    assert isinstance(one.model, nn.Module)
    return adapters(one.model)


def losses(one: Trainer) -> list[float]:
    return [record["loss"] for record in one.state.log_history if "loss" in record]


def test_a_step_that_ran_out_is_done_again_and_no_bit_differs(tmp_path: Path) -> None:
    whole = trainer(tmp_path)
    whole.train()
    failing = trainer(tmp_path)
    calls = Calls(failing.model, lambda call, size: call in (1, 3, 4))
    survivor = lorakit.survive(failing)
    failing.train()
    # the longest rows, then three steps, of which one was tried twice and one three times
    assert len(calls.sizes) == 1 + 3 + 3 and calls.sizes[0] == (2, 9)
    assert [climb.rung for climb in survivor.climbs if climb.milliseconds] == [Rung.AGAIN, Rung.SEND]
    assert losses(failing) == losses(whole)
    mine, theirs = learned(failing), learned(whole)
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert [record.get("rung") for record in failing.state.log_history if "loss" in record][:2] == [1, 3]


def test_a_batch_that_fits_in_parts_alone_is_split_and_learns_the_same(tmp_path: Path) -> None:
    whole = trainer(tmp_path, PLAIN)
    whole.train()
    said: list[str] = []
    failing = trainer(tmp_path, PLAIN)
    calls = Calls(failing.model, lambda call, size: size[0] > 1)
    from lorakit.trainers.surviving import survive

    survivor = survive(failing, say=said.append)
    failing.train()
    assert {climb.rung for climb in survivor.climbs} == {Rung.SPLIT} and len(said) == 1
    assert "in parts" in said[0]
    # what the longest batch showed is known from the first step on, but for smaller batches
    assert calls.sizes[:5] == [(2, 9), (2, 9), (2, 9), (1, 9), (1, 9)]
    assert losses(failing) == pytest.approx(losses(whole), rel=1e-4)
    mine, theirs = learned(failing), learned(whole)
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-6)


def test_what_never_fits_fails_before_the_first_step_and_says_what_to_change(tmp_path: Path) -> None:
    failing = trainer(tmp_path)
    model: Any = failing.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Calls(model, lambda call, size: True)
    lorakit.survive(failing)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory") as caught:
        failing.train()
    assert failing.state.global_step == 0
    (note,) = caught.value.__notes__
    assert "the dropout of" in note and "`step batch N tokens N`" in note
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_batch_size_that_trainer_finds_itself_is_found_once_nothing_else_helps(tmp_path: Path) -> None:
    failing = trainer(tmp_path, auto_find_batch_size=True)
    calls = Calls(failing.model, lambda call, size: size[0] > 1)
    lorakit.survive(failing)
    failing.train()
    assert failing.state.global_step == 3
    assert [size[0] for size in calls.sizes[-3:]] == [1, 1, 1]


def test_a_batch_size_that_trainer_finds_itself_stays_where_a_step_is_finished(tmp_path: Path) -> None:
    whole = trainer(tmp_path, PLAIN)
    whole.train()
    failing = trainer(tmp_path, PLAIN, auto_find_batch_size=True)
    calls = Calls(failing.model, lambda call, size: call in (1, 3, 4))
    lorakit.survive(failing)
    failing.train()
    assert {size[0] for size in calls.sizes} == {2} and losses(failing) == losses(whole)
    split = trainer(tmp_path, PLAIN, auto_find_batch_size=True)
    Calls(split.model, lambda call, size: size[0] > 1)
    survivor = lorakit.survive(split)
    split.train()
    assert {climb.rung for climb in survivor.climbs} == {Rung.SPLIT} and split.state.train_batch_size == 2
    assert losses(split) == pytest.approx(losses(whole), rel=1e-4)


def test_a_trainer_is_stood_around_once(tmp_path: Path) -> None:
    whole = trainer(tmp_path)
    whole.train()
    twice = trainer(tmp_path)
    calls = Calls(twice.model, lambda call, size: call == 1)
    first = lorakit.survive(twice)
    step = twice.training_step
    # as where a cell of a notebook runs again: what was asked for last counts
    assert lorakit.survive(twice, longest_first=False) is first and twice.training_step == step
    twice.train()
    assert len(calls.sizes) == 3 + 1 and [climb.rung for climb in first.climbs] == [Rung.AGAIN]
    assert losses(twice) == losses(whole)
    lorakit.survive(twice)
    twice.train()
    assert calls.sizes[4] == (2, 9) and len(calls.sizes) == 4 + 1 + 3


def in_update(func: Any) -> bool:
    """Return whether an operation is called by clipping, or by an optimizer's step."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_name not in ("clip_grad_norm_", "step"):
        frame = frame.f_back
    return frame is not None


@pytest.mark.parametrize("given", [True, False], ids=["an optimizer given", "Trainer's own"])
def test_an_update_of_a_trainer_goes_on_where_it_ran_out(given: bool, tmp_path: Path) -> None:
    def made() -> Trainer:
        one = trainer(tmp_path, max_grad_norm=1e-2)
        one.optimizer = one.optimizer if given else None
        return one

    whole = made()
    with Allocations(among=in_update) as counted:
        whole.train()
    for number in (0, 5, counted.count // 2, counted.count - 1):
        failing = made()
        lorakit.survive(failing, longest_first=False)
        with Allocations((number,), among=in_update) as mode:
            failing.train()
        assert len(mode.failed) == 1
        assert losses(failing) == losses(whole)
        mine, theirs = learned(failing), learned(whole)
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_the_longest_rows_come_first_and_leave_nothing_behind(tmp_path: Path) -> None:
    plain = trainer(tmp_path)
    plain.train()
    first = trainer(tmp_path)
    calls = Calls(first.model, never)
    lorakit.survive(first)
    first.train()
    assert calls.sizes[0] == (2, 9) and len(calls.sizes) == 4
    assert losses(first) == losses(plain)
    assert all(torch.equal(value, learned(plain)[name]) for name, value in learned(first).items())
    without = trainer(tmp_path)
    calls = Calls(without.model, never)
    lorakit.survive(without, longest_first=False)
    without.train()
    assert len(calls.sizes) == 3


MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(8, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        if self.training and len(x) > ROOM:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return self.head(self.body(x).relu())

def net():
    torch.manual_seed(0)
    return Net()

def pairs():
    x = torch.randn(24, 8, generator=torch.Generator().manual_seed(1))
    return [(row, (row.sum() > 0).long()) for row in x]
"""


def train(tmp_path: Path, room: int, name: str) -> Any:
    code = tmp_path / f"{name}.py"
    code.write_text(MODEL.replace("ROOM", str(room)))
    spec = tmp_path / "spec.lora"
    spec.write_text("adapt body,head rank 2\noptimizer adamw lr 1e-2\n")
    words = ["train", spec, f"{code}:net", f"{code}:pairs", "-o", tmp_path / name, "--steps", 3, "--batch", 4]
    return CliRunner().invoke(app, [*map(str, words), "--held-out", "0"])


def test_the_loop_for_plain_models_splits_and_logs_it(tmp_path: Path) -> None:
    whole, split = train(tmp_path, 100, "whole"), train(tmp_path, 2, "split")
    assert whole.exit_code == split.exit_code == 0, split.output
    records = [
        [json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
        for name in ("whole", "split")
    ]
    for one, other in zip(*records, strict=True):
        if "loss" in one:
            assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
            assert other["rung"] == Rung.SPLIT and "rung" not in one
    assert "out of memory in a batch of 4 rows: computed in parts" in split.output
    assert "out of memory" not in whole.output
    assert "; memory ran out in 3 steps, which took " in split.output and "memory ran out" not in whole.output


def test_pages_that_moved_stand_in_the_log() -> None:
    parameters = [nn.Parameter(torch.ones(64, 64)) for _ in range(4)]
    optimizer = lorakit.paged(torch.optim.AdamW(parameters), budget=80 << 10)
    needs = Needs([], lambda: optimizer)
    needs.since()
    moved = []
    for _ in range(2):
        for one in parameters:
            one.grad = torch.ones_like(one)
        optimizer.step()
        moved.append(needs.since())
    # what is used for the first time comes from nowhere
    waited = "paged_stalled_milliseconds"
    assert moved[0].keys() == {"paged_out_bytes", waited}
    assert moved[1].keys() == {"paged_in_bytes", "paged_out_bytes", waited}
    assert moved[1]["paged_in_bytes"] == optimizer.traffic.bytes_in
    # copies of a CPU are waited for
    assert moved[0][waited] + moved[1][waited] == pytest.approx(1000 * optimizer.traffic.stalled, abs=0.002)
    words = needs_words([*moved, {"rung": 1, "rung_milliseconds": 12.4}])
    assert words.startswith("; memory ran out in 1 steps, which took 12 ms more; optimizer state paged, ")
    assert "KiB in and " in words and words.endswith(" ms of waiting") and not needs_words([{"loss": 1.0}])
    assert needs.since() == {}


def test_what_never_fits_ends_the_command_with_advice(tmp_path: Path) -> None:
    result = train(tmp_path, 0, "none")
    from lorakit.errors import TrainingError

    assert isinstance(result.exception, TrainingError)
    words = str(result.exception)
    assert words.startswith("CUDA out of memory.") and "the step does not fit" in words and "`step batch N" in words
    assert not (tmp_path / "none").exists()
