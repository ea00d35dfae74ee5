"""Optimizers that step one set of weights and mean another to be used: trainers switch between the two."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import lorakit
from helpers import adapters, make_llama
from lorakit.data.source import read_data
from lorakit.hooks import hookimpl
from lorakit.hooks.manager import Plugins
from lorakit.plugins import load_plugins
from lorakit.trainers.display import Display
from lorakit.trainers.huggingface_task import LanguageTask
from lorakit.trainers.plain_task import PairsTask
from lorakit.trainers.settings import Settings
from lorakit.values import ModelReference

BUILT: list[Averaging] = []
NET = """
import torch

def pairs():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(24, 8, generator=generator)
    return [(x, x.flip(0)) for x in inputs]
"""


class Averaging(torch.optim.SGD):
    """SGD that means the average of all the weights that it stepped through to be used (Polyak's)."""

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        super().__init__([{**group, "steps": 0, "stepping": True} for group in groups], lr=0.1)
        self.rates: list[float] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert all(group["stepping"] for group in self.param_groups)
        super().step(closure)
        self.rates.append(self.param_groups[0]["lr"])
        for group in self.param_groups:
            group["steps"] += 1
            for parameter in group["params"]:
                average = self.state[parameter].setdefault("other", torch.zeros_like(parameter))
                average.lerp_(parameter.detach(), 1 / group["steps"])

    def train(self) -> None:
        self._switch(True)

    def eval(self) -> None:
        self._switch(False)

    @torch.no_grad()
    def _switch(self, stepping: bool) -> None:
        for group in self.param_groups:
            for parameter in group["params"] if group["stepping"] is not stepping else ():
                if "other" in self.state[parameter]:
                    other = self.state[parameter]["other"].clone()
                    self.state[parameter]["other"].copy_(parameter)
                    parameter.copy_(other)
            group["stepping"] = stepping


@dataclass(frozen=True)
class Averaged:
    """Averaged SGD."""

    name: ClassVar[str] = "averaged"
    default_lr: ClassVar[float] = 0.1
    constant_lr: ClassVar[bool] = True

    def build(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        BUILT.append(Averaging(groups))
        return BUILT[-1]

    def state(self, shape: tuple[int, ...], dtype: str) -> Mapping[str, tuple[tuple[int, ...], str]]:
        return {"other": (shape, dtype)}


@pytest.fixture
def plugins() -> Plugins:
    module = types.SimpleNamespace(lorakit_optimizers=hookimpl(lambda: [Averaged]))
    return load_plugins(modules={"sample 1.0": module})


@contextmanager
def measured_with_the_average(model: nn.Module) -> Iterator[list[bool]]:
    """Yield whether each forward without gradients saw the weights to be used."""
    seen: list[bool] = []

    def look(*_: Any) -> None:
        if not torch.is_grad_enabled() and BUILT:
            seen.append(not any(group["stepping"] and group["steps"] for group in BUILT[-1].param_groups))

    handle = model.register_forward_pre_hook(look)
    yield seen
    handle.remove()


def display() -> Display:
    return Display(Console(stderr=True), lambda _: None)


def adapted(text: str, model: nn.Module, plugins: Plugins) -> nn.Module:
    return lorakit.apply(lorakit.parse(text, plugins=plugins), model, plugins=plugins)


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))


def test_the_plain_loop_uses_the_average_and_resumes_exactly(
    plugins: Plugins, write: Callable[[str, str], Path], tmp_path: Path
) -> None:
    data = f"{write('net.py', NET)}:pairs"
    text = "adapt 0 rank 2\noptimizer averaged"
    settings = Settings(steps=6, warmup=2, batch=4, held_out=0.2, evaluate_every=2, save_every=3)
    whole = adapted(text, make_net(), plugins)
    with measured_with_the_average(whole) as seen:
        PairsTask(data, None, settings).train(whole, tmp_path / "work", display(), resume=False)
    assert len(seen) >= 4 and all(seen)
    assert [round(rate, 3) for rate in BUILT[-1].rates] == [0.05, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert not any(group["stepping"] for group in BUILT[-1].param_groups)
    assert any(not torch.equal(parameter, state["other"]) for parameter, state in BUILT[-1].state.items())

    checkpoint = tmp_path / "work" / "checkpoint-3"
    assert json.loads((checkpoint / "trainer_state.json").read_text())["groups"][0]["steps"] == 3
    again = adapted(text, make_net(), plugins)
    PairsTask(data, None, settings).train(again, tmp_path / "work", display(), resume=True)
    ends = adapters(again)
    assert all(torch.equal(value, ends[name]) for name, value in adapters(whole).items())


def test_transformers_trainer_saves_the_average(
    plugins: Plugins, llama_folder: Path, write: Callable[[str, str], Path], tmp_path: Path
) -> None:
    rows = "".join(json.dumps({"text": f"{letter} is a letter"}) + "\n" for letter in "abcdefghijkl")
    settings = Settings(steps=4, batch=2, tokens=16, held_out=0.2, evaluate_every=3, save_every=2)
    data = read_data(write("rows.jsonl", rows), load_plugins())
    task = LanguageTask(ModelReference(str(llama_folder)), make_llama(vocab_size=320), data, settings)
    model = adapted("adapt q_proj rank 2 dtype fp32\noptimizer averaged", make_llama(vocab_size=320), plugins)
    after: dict[int, dict[str, Tensor]] = {}
    with measured_with_the_average(model) as seen:
        task.train(model, tmp_path / "work", display(), resume=False)
    assert len(seen) >= 3 and all(seen)
    assert BUILT[-1].rates == [0.1] * 4
    for step in (2, 4):
        loaded = lorakit.load(tmp_path / "work" / f"checkpoint-{step}", make_llama(vocab_size=320), plugins=plugins)
        after[step] = adapters(loaded)
        state = torch.load(tmp_path / "work" / f"checkpoint-{step}" / "optimizer.pt", weights_only=True)
        assert not any(group["stepping"] for group in state["param_groups"])
    assert all(torch.equal(value, after[4][name]) for name, value in adapters(model).items())
    assert any(not torch.equal(value, after[2][name]) for name, value in adapters(model).items())
