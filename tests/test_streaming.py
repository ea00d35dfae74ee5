"""Models quantized while their shards are read: the same bits as loaded whole, and never two weights at once."""

from __future__ import annotations

import io
import json
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import lorakit
from architectures import ARCHITECTURES, Architecture
from helpers import make_gpt2, make_llama
from lorakit.application.apply import apply_plan
from lorakit.artifacts.checkpoint import StoredTensor
from lorakit.cli import terminal
from lorakit.hooks.manager import Plugins
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.plugins import default_plugins, load_plugins
from lorakit.values import ModelReference, QuantizedWeight

SPEC = "quantize @linear nf4 double"


def sharded(model: Any, folder: Path) -> Path:
    """Save a model in small shards, and return the folder."""
    model.save_pretrained(folder, max_shard_size="40KB")
    return folder


def streamed(folder: Path, spec: str, plugins: Plugins | None = None, **settings: Any) -> nn.Module:
    """Return what the loader makes of a folder and a plan, before the plan is applied."""
    plugins = plugins or default_plugins()
    plan = lorakit.plan(lorakit.parse(spec, plugins=plugins), folder, plugins=plugins)
    reference = ModelReference(str(folder), plan=plan, plugins=plugins, **settings)
    return plugins.load_model(reference)


def whole(folder: Path, **settings: Any) -> nn.Module:
    return default_plugins().load_model(ModelReference(str(folder), **settings))


def assert_same(one: nn.Module, other: nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype and torch.equal(value, second[name]), name


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_the_same_bits_as_loaded_whole(architecture: Architecture, tmp_path: Path) -> None:
    folder = sharded(architecture.build(), tmp_path / "model")
    plan = lorakit.plan(SPEC, folder)
    model: Any = streamed(folder, SPEC)
    done = {name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    assert done == {entry.path for entry in plan.entries}
    loaded: Any = whole(folder)
    assert model.config.to_dict() == loaded.config.to_dict() and model.training == loaded.training
    assert vars(model).keys() == vars(loaded).keys()
    plugins = default_plugins()
    assert_same(apply_plan(plan, model, plugins), apply_plan(plan, loaded, plugins))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_another_dtype(make: Any, dtype: str, tmp_path: Path) -> None:
    folder = sharded(make(), tmp_path / "model")
    model, loaded = streamed(folder, SPEC, dtype=dtype), whole(folder, dtype=dtype)
    lorakit.apply(SPEC, loaded)
    assert_same(model, loaded)
    assert {module.dequantized_dtype for module in model.modules() if isinstance(module, QuantizedLinear)} == {
        getattr(torch, dtype)
    }


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    folder = sharded(make_llama(tie_word_embeddings=True), tmp_path / "model")
    model: Any = lorakit.apply("adapt @linear rank 2 quant nf4 double", folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_one_weight_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sharded(make_llama(), tmp_path / "model")
    planned = {f"{entry.path}.weight" for entry in lorakit.plan(SPEC, folder).entries}
    alive: dict[str, Any] = {}
    most = 0
    read = StoredTensor.__getitem__

    def watched(self: StoredTensor, index: Any) -> Tensor:
        nonlocal most
        tensor = read(self, index)
        if self.name in planned:
            alive[self.name] = weakref.ref(tensor.untyped_storage())
        most = max(most, sum(one() is not None for one in alive.values()))
        return tensor

    monkeypatch.setattr(StoredTensor, "__getitem__", watched)
    streamed(folder, SPEC)
    assert alive.keys() == planned and most == 1


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    folder = sharded(make_llama(), tmp_path / "model")
    seen: list[tuple[int, int]] = []
    streamed(folder, SPEC, progress=lambda done, total: seen.append((done, total)))
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert seen == sorted(seen) and {total for _, total in seen} == {size}
    # headers are no tensors
    assert 0.9 * size < seen[-1][0] < size


def test_a_terminal_sees_a_bar_and_a_pipe_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_terminal in (True, False):
        written = io.StringIO()
        screen = Console(file=written, force_terminal=is_terminal, width=100)
        monkeypatch.setattr(terminal, "console", lambda stderr=False, screen=screen: screen)
        with terminal.measured("reading it") as progress:
            progress(3_000_000, 12_000_000)
            if is_terminal:
                # the bar is drawn a few times a second, and once more at the end
                time.sleep(0.3)
        assert ("reading it" in written.getvalue() and "3.0/12.0 MB" in written.getvalue()) == is_terminal
        assert is_terminal or not written.getvalue()


@dataclass(frozen=True)
class Picky:
    """Stores as it is, and fails on a weight of 96 inputs."""

    name: ClassVar[str] = "picky"
    calls: ClassVar[list[tuple[int, ...]]] = []

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        self.calls.append(tuple(weight.shape))
        if weight.shape[1] == 96:
            raise RuntimeError("no room")
        return QuantizedWeight({"kept": weight.clone()}, (weight.shape[0], weight.shape[1]), weight.dtype)

    def dequantize(self, quantized: QuantizedWeight) -> Tensor:
        return quantized.tensors["kept"]

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        return 32


@dataclass(frozen=True)
class Calibrated(Picky):
    """Wants to see inputs."""

    name: ClassVar[str] = "calibrated"

    def observe(self, x: Tensor, seen: Any) -> Any:
        return x

    def quantize_observed(self, weight: Tensor, seen: Any) -> QuantizedWeight:
        return self.quantize(weight)


class Plugin:
    @staticmethod
    @lorakit.hookimpl
    def lorakit_quantizers() -> list[type]:
        return [Picky, Calibrated]


def test_a_quantizer_that_fails_stops_the_reading(tmp_path: Path) -> None:
    folder = sharded(make_llama(), tmp_path / "model")
    Picky.calls.clear()
    with pytest.raises(lorakit.PluginError, match=r"`picky` .* failed on `model.layers.0.mlp.down_proj` .*no room"):
        streamed(folder, "quantize @linear picky", load_plugins(modules={"mine": Plugin}))
    assert Picky.calls[-1] == (64, 96) and Picky.calls.count((64, 96)) == 1


def test_a_calibrated_quantizer_waits(tmp_path: Path) -> None:
    folder = sharded(make_llama(), tmp_path / "model")
    model = streamed(
        folder, "quantize q_proj picky\nquantize v_proj calibrated", load_plugins(modules={"mine": Plugin})
    )
    attention: Any = model.get_submodule("model.layers.0.self_attn")
    assert isinstance(attention.q_proj, QuantizedLinear) and type(attention.v_proj) is nn.Linear


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    folder = sharded(make_llama(), tmp_path / "model")
    broken = sorted(folder.glob("*.safetensors"))[2]
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(lorakit.ModelError, match=rf"{broken.name} is damaged or cut short"):
        lorakit.apply(SPEC, folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = sharded(make_llama(), tmp_path / "model")
    missing = sorted(folder.glob("*.safetensors"))[2]
    missing.unlink()
    with pytest.raises(lorakit.ModelError, match=missing.name):
        lorakit.apply(SPEC, folder)


def test_a_weight_of_another_shape_is_named(tmp_path: Path) -> None:
    folder = sharded(make_llama(), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 80}))
    with pytest.raises(lorakit.ModelError, match=r"`model.layers.0.mlp.down_proj.weight` is \(64, 96\) in the files"):
        lorakit.apply(SPEC, folder)
