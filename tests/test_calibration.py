"""Calibration: what a quantizer sees before anything is quantized, and how the model is left."""

from __future__ import annotations

import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import lorakit
from helpers import make_llama
from lorakit.application.observing import observe
from lorakit.hooks import QuantizedWeight, Quantizer, hookimpl
from lorakit.hooks.manager import Plugins
from lorakit.plugins import load_plugins


@dataclass(frozen=True)
class Means(Quantizer):
    """Stores the weight as it is, plus the mean of the inputs that it saw."""

    name: ClassVar[str] = "means"
    fail: bool = False

    def observe(self, x: Tensor, seen: Any) -> Any:
        if self.fail:
            raise RuntimeError("no thanks")
        total, count = seen or (0, 0)
        return total + x.flatten(0, -2).sum(dim=0), count + x[..., 0].numel()

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        return QuantizedWeight({"full": weight.clone()}, tuple(weight.shape), weight.dtype)  # type: ignore[arg-type]

    def quantize_observed(self, weight: Tensor, seen: Any) -> QuantizedWeight:
        return self.quantize(weight if seen is None else weight + seen[0] / seen[1])

    def dequantize(self, quantized: QuantizedWeight) -> Tensor:
        return quantized.tensors["full"].to(quantized.dtype)

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        return 32.0


@pytest.fixture
def plugins() -> Plugins:
    return load_plugins(modules={"sample 1.0": types.SimpleNamespace(lorakit_quantizers=hookimpl(_means))})


def _means() -> list[type]:
    return [Means]


class Two(nn.Module):
    """Two layers that run, with dropout between, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.drop, self.second, self.idle = nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.second(input=self.drop(self.first(x * scale)))


X = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    "batches",
    [
        [X],
        list(X.split(2)),
        ((half,) for half in X.split(3)),
        [{"x": X / 2, "scale": 2.0}],
        [(X / 2, 2.0)],
    ],
    ids=["one tensor", "several", "tuples from a generator", "by name", "in order"],
)
def test_a_quantizer_sees_every_input_of_its_layer(batches: Any, plugins: Plugins) -> None:
    spec = lorakit.parse("quantize first,second,idle means", plugins=plugins)
    model: Any = lorakit.apply(spec, Two().train(), calibration=batches, plugins=plugins)
    fresh = Two()
    into_second = fresh.first(X).detach()
    torch.testing.assert_close(model.first.weight, fresh.first.weight + X.mean(dim=(0, 1)))
    # in evaluation mode, so that no dropout is in it
    torch.testing.assert_close(model.second.weight, fresh.second.weight + into_second.mean(dim=(0, 1)))
    assert torch.equal(model.idle.weight, fresh.idle.weight)


def test_the_model_is_left_as_it_was(plugins: Plugins) -> None:
    model = Two().train()
    model.drop.eval()
    plan = lorakit.plan(lorakit.parse("quantize first,idle means", plugins=plugins), model, plugins=plugins)
    assert "means: sees what goes into its layers before anything changes, so it needs calibration data" in plan.notes
    observed = observe(plan, model, plugins, [X.clone().requires_grad_()])
    first, idle = ("quantizer", "first"), ("quantizer", "idle")
    assert observed.keys() == {first, idle} and observed[idle] is None
    assert not observed[first][0].requires_grad
    assert model.training and model.first.training and not model.drop.training
    assert not [module for module in model.modules() if module._forward_hooks]


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        (None, lorakit.PlanError, r"means needs calibration data: give calibration=… \(--calibration DATA"),
        ([], lorakit.DataError, "holds no batch"),
        ([X, torch.ones(2, 7)], lorakit.DataError, r"does not take calibration batch 2: .*one tensor"),
        ([{"y": X}], lorakit.DataError, "batch 1: TypeError: .*'y'"),
    ],
)
def test_what_is_no_data_is_an_error_and_leaves_the_model(
    batches: Any, error: type, message: str, plugins: Plugins
) -> None:
    model = Two().train()
    with pytest.raises(error, match=message):
        lorakit.apply(
            lorakit.parse("quantize first means", plugins=plugins), model, calibration=batches, plugins=plugins
        )
    assert type(model.first) is nn.Linear and model.first.training
    assert not model.first._forward_hooks


def test_a_quantizer_that_fails_to_observe_is_named(plugins: Plugins) -> None:
    spec = lorakit.parse("quantize first means(fail=true)", plugins=plugins)
    message = r"`means` of sample 1.0 failed to observe `first`, given \(6, 5, 4\): RuntimeError: no thanks"
    with pytest.raises(lorakit.PluginError, match=message):
        lorakit.apply(spec, Two(), calibration=[X], plugins=plugins)


def test_data_that_nobody_asked_for_is_not_touched(plugins: Plugins) -> None:
    def batches() -> Any:
        raise AssertionError("read")
        yield

    lorakit.apply(lorakit.parse("quantize first nf4", plugins=plugins), Two(), calibration=batches(), plugins=plugins)


def test_layers_that_torch_runs_past_in_evaluation_mode_are_seen(plugins: Plugins) -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    spec = lorakit.parse("quantize linear1 means", plugins=plugins)
    plan = lorakit.plan(spec, model, plugins=plugins)
    with torch.no_grad():
        seen = observe(plan, model, plugins, [torch.randn(2, 3, 8)])
    assert {count for _, count in seen.values()} == {6}


def test_an_adapter_on_a_calibrated_base_asks_for_that_base(plugins: Plugins, tmp_path: Path) -> None:
    spec = lorakit.parse("adapt q_proj rank 2 quant means", plugins=plugins)
    batches = [{"input_ids": torch.arange(12).view(2, 6)}]
    model = lorakit.apply(spec, make_llama(), calibration=batches, plugins=plugins)
    lorakit.save(model, tmp_path / "adapter")
    with pytest.raises(lorakit.AdapterError, match=r"means quantized .*--with-base .*quantize=False"):
        lorakit.load(tmp_path / "adapter", make_llama(), plugins=plugins)
    plain = lorakit.load(tmp_path / "adapter", make_llama(), quantize=False, plugins=plugins)
    assert type(plain.get_submodule("model.layers.0.self_attn.q_proj.base_layer")) is nn.Linear
