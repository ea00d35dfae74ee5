"""Checkpoints of the loop for plain models: all that an optimizer keeps comes back, and the run goes on to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import lorakit
from lorakit.trainers.plain_checkpoints import read_checkpoint, write_checkpoint


class Run:
    def __init__(self, optimizer: str) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 128))
        # bitsandbytes keeps eight bits of tensors of 4,096 elements and more
        self.model = lorakit.apply(f"adapt 0,2 rank 64 dtype fp32\noptimizer {optimizer} lr 1e-2", net)
        self.optimizer = lorakit.optimizer(self.model)

    def steps(self, numbers: range) -> Run:
        for number in numbers:
            self.optimizer.zero_grad()
            x = torch.randn(4, 128, generator=torch.Generator().manual_seed(number))
            self.model(x).square().mean().backward()
            self.optimizer.step()
        return self


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adamw8bit paged", "sgd(momentum=0.9)", "adamw paged"])
def test_a_run_goes_on_from_a_checkpoint_to_the_same_bits(optimizer: str, tmp_path: Path) -> None:
    unbroken = Run(optimizer).steps(range(5))
    first = Run(optimizer).steps(range(3))
    write_checkpoint(first.model, first.optimizer, 3, [{"loss": 1.0}], tmp_path)
    again = Run(optimizer)
    start = read_checkpoint(again.model, again.optimizer, tmp_path)
    assert start.step == 3 and list(start.history) == [{"loss": 1.0}]
    again.steps(range(3, 5))
    values = dict(unbroken.model.named_parameters())
    assert all(torch.equal(value, values[name]) for name, value in again.model.named_parameters())


def test_tensors_within_dicts_and_lists_come_back(tmp_path: Path) -> None:
    run = Run("sgd")
    parameter = run.optimizer.param_groups[0]["params"][0]
    kept = {"halves": {"a": torch.arange(3), "b": [torch.ones(2), 5]}, "number": 7, "none": None}
    run.optimizer.state[parameter].update(kept)
    write_checkpoint(run.model, run.optimizer, 1, [], tmp_path)
    again = Run("sgd")
    read_checkpoint(again.model, again.optimizer, tmp_path)
    (found,) = again.optimizer.state_dict()["state"].values()
    assert torch.equal(found["halves"]["a"], torch.arange(3)) and torch.equal(found["halves"]["b"][0], torch.ones(2))
    assert (found["halves"]["b"][1], found["number"], found["none"]) == (5, 7, None)
