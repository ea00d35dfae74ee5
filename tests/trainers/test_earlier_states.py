"""States of adapters that earlier releases wrote: what they hold is taken up, and held against the plan, as ever."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lorakit
from helpers import adapters, make_llama, randomize

PREFIX = "base_model.model."
SPEC = "adapt q_proj,v_proj rank 4 quant nf4\ntrain model.norm"


def alone(seed: int, spec: str = SPEC, **given: Any) -> nn.Module:
    return lorakit.apply(spec, make_llama(), seed=seed, **given)


def called(seed: int) -> nn.Module:
    return alone(seed, name="poet")


def shared(seed: int) -> nn.Module:
    return alone(seed, "adapt q_proj,v_proj rank 4 method vera")


def started(seed: int) -> nn.Module:
    return alone(0, "adapt q_proj rank 2 init pissa(iterations=1)")


def several(seed: int) -> nn.Module:
    model = lorakit.apply("adapt q_proj rank 2", alone(seed), seed=seed, name="second")
    lorakit.adapters(model).use({"default": 1.0, "second": 0.5})
    return model


def both_called() -> nn.Module:
    model = lorakit.apply("adapt q_proj rank 2", called(0), name="second")
    lorakit.adapters(model).use({"poet": 1.0, "second": 1.0})
    return model


def by_folders(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Return the adapters of a model as a Trainer's checkpoint held them: by their folders, each with its plan."""
    names, found = list(lorakit.adapters(model).used), {}
    for name in names:
        lorakit.save(model, folder / name, name=name)
        place = "" if name == "default" or len(names) == 1 else name
        for key, value in load_file(folder / name / "adapter_model.safetensors").items():
            found[key if not place and key.startswith(PREFIX) else f"{PREFIX}{place}/{key}"] = value
        plan = (folder / name / "plan.json").read_bytes().rstrip()
        found[f"{PREFIX}{place}/lorakit_plan"] = torch.frombuffer(bytearray(plan), dtype=torch.uint8)
        if (folder / name / "start.safetensors").exists():
            start = load_file(folder / name / "start.safetensors")
            found |= {f"{PREFIX}{place}/lorakit_start/{key}": value for key, value in start.items()}
    return found


def expect_same(one: nn.Module, other: nn.Module) -> None:
    mine, theirs = adapters(one), adapters(other)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("make", [alone, called, shared, started, several])
def test_a_checkpoint_by_folders(make: Callable[[int], nn.Module], views: bool, tmp_path: Path) -> None:
    if make in (shared, started):
        pytest.importorskip("lorakit_methods")
    source, model = make(0), make(1)
    randomize(source)
    held: Any = lorakit.peft(model) if views else model
    found = held.load_state_dict(by_folders(source, tmp_path), strict=False)
    assert not found.missing_keys and not found.unexpected_keys
    expect_same(model, source)


def test_the_plans_in_it_are_compared(tmp_path: Path) -> None:
    state = by_folders(alone(0), tmp_path)
    for other, message in (
        (alone(0, SPEC.replace("rank 4", "rank 4 alpha 64")), "had alpha 4, and has 64 now"),
        (several(0), "holds the adapters default, and in use is second too"),
        (both_called(), "holds the adapters default, and the model has poet, second"),
    ):
        before = adapters(other)
        with pytest.raises(lorakit.AdapterError, match=message):
            other.load_state_dict(state, strict=False)
        assert all(torch.equal(before[name], value) for name, value in adapters(other).items())
    state[f"{PREFIX}/lorakit_plan"] = torch.full((3,), 255, dtype=torch.uint8)
    with pytest.raises(lorakit.AdapterError, match="no plan of `default` that can be read"):
        alone(0).load_state_dict(state, strict=False)


@pytest.mark.parametrize("views", [False, True])
def test_an_adapters_file(views: bool, tmp_path: Path) -> None:
    source, model = alone(0), alone(1)
    randomize(source)
    lorakit.save(source, tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    left_out = f"{PREFIX}model.layers.1.self_attn.q_proj.lora_A.weight"
    held: Any = lorakit.peft(model) if views else model
    less = {name: value for name, value in state.items() if name != left_out}
    found = held.load_state_dict(less, strict=False)
    assert [name.removeprefix(PREFIX) for name in found.missing_keys] == ["model.layers.1.self_attn.q_proj.lora_A"]
    held.load_state_dict(state)
    expect_same(model, source)


def test_a_state_that_says_nothing_of_a_start() -> None:
    """As a state by `lorakit.checkpoint_adapters` and a Lightning checkpoint were."""
    pytest.importorskip("lorakit_methods")
    from lorakit.artifacts.state_dict import to_adapters

    source, model = started(0), started(0)
    randomize(source)
    state: dict[str, Any] = source.state_dict()
    to_adapters(source, state)
    assert any(name.startswith("lorakit_start.") for name in state)
    model.load_state_dict({name: value for name, value in state.items() if not name.startswith("lorakit_start.")})
    expect_same(model, source)
