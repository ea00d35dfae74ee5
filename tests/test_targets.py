"""Which modules a target selects, against paths written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lorakit
from helpers import make_gpt2, make_llama


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(4, 4)
        self.out = nn.Linear(4, 4)


class Towers(nn.Module):
    """Two numbered containers, a module under two names, and one that no adapter fits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(4))
        self.vision = nn.ModuleDict({"layers": nn.ModuleList(Block() for _ in range(2))})
        self.rank = nn.Linear(4, 4)
        self.alias = self.rank
        self.conv = nn.Conv2d(4, 4, 3, groups=2)


def decided(text: str, model: nn.Module) -> list[str]:
    return [entry.path for entry in lorakit.plan(text, model).entries]


@pytest.mark.parametrize(
    ("target", "paths"),
    [
        ("q", [*(f"layers.{n}.q" for n in range(4)), *(f"vision.layers.{n}.q" for n in range(2))]),
        ("vision.layers.0.q", ["vision.layers.0.q"]),
        ("layers.0.q", ["layers.0.q", "vision.layers.0.q"]),
        ("1.q", ["layers.1.q", "vision.layers.1.q"]),
        ("vision.**.out", ["vision.layers.0.out", "vision.layers.1.out"]),
        ("vision.*.*.o*", ["vision.layers.0.out", "vision.layers.1.out"]),
        ("layers[1..2].q", ["layers.1.q", "layers.2.q", "vision.layers.1.q"]),
        ("layers[-1].q", ["layers.3.q", "vision.layers.1.q"]),
        ("layers[0, -1].out", ["layers.0.out", "layers.3.out", "vision.layers.0.out", "vision.layers.1.out"]),
        ("vision.layers[0]", ["vision.layers.0.q", "vision.layers.0.out"]),
        (r"/layers\.[13]\.q/", ["layers.1.q", "layers.3.q"]),
        ("rank", ["rank"]),
        ("alias", ["rank"]),
        ("vision.layers[1].:Linear", ["vision.layers.1.q", "vision.layers.1.out"]),
        ("q layers 2..3", ["layers.2.q", "layers.3.q"]),
        ("layers.*.q except vision.layers, layers.2.q", ["layers.0.q", "layers.1.q", "layers.3.q"]),
    ],
)  # fmt: skip
def test_paths(target: str, paths: list[str]) -> None:
    assert decided(f"adapt {target} rank 2", Towers()) == paths


def test_roles_of_a_llama() -> None:
    model = make_llama()
    attention = {f"model.layers.{n}.self_attn.{name}_proj" for n in range(2) for name in "qkvo"}
    mlp = {f"model.layers.{n}.mlp.{name}_proj" for n in range(2) for name in ("gate", "up", "down")}
    assert set(decided("adapt @attention rank 2", model)) == attention
    assert set(decided("adapt @mlp rank 2", model)) == mlp
    assert set(decided("adapt @linear rank 2", model)) == attention | mlp
    assert decided("adapt @head rank 2", model) == ["lm_head"]
    assert decided("train @embedding", model) == ["model.embed_tokens"]
    norms = {f"model.layers.{n}.{name}_layernorm" for n in range(2) for name in ("input", "post_attention")}
    assert set(decided("train @norm", model)) == norms | {"model.norm"}


def test_roles_of_a_gpt2() -> None:
    model = make_gpt2()
    assert decided("adapt @attention rank 2 layers 0", model) == [
        "transformer.h.0.attn.c_attn",
        "transformer.h.0.attn.c_proj",
    ]
    assert decided("adapt @mlp rank 2 layers -1", model) == ["transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_proj"]
    assert len(decided("adapt :Conv1D rank 2", model)) == 8


def test_a_plain_model_has_no_head() -> None:
    with pytest.raises(lorakit.PlanError, match="`@head` matches no module"):
        lorakit.plan("adapt @head rank 2", Towers())


def test_train_of_a_container_means_what_is_inside() -> None:
    assert decided("train vision", Towers()) == [f"vision.layers.{n}.{name}" for n in range(2) for name in ("q", "out")]


def test_a_rule_that_crosses_two_towers_says_so() -> None:
    notes = lorakit.plan("adapt q rank 2", Towers()).notes
    assert any("crosses 2 towers: 4 in layers, 2 in vision.layers" in note for note in notes)


def test_what_no_adapter_fits_is_passed_over_and_counted() -> None:
    plan = lorakit.plan("adapt * rank 2", Towers())
    passed = {"layers", "vision", "conv"}
    with pytest.raises(lorakit.PlanError, match="grouped convolution, and B·A has not the shape"):
        lorakit.plan("adapt conv rank 2", Towers())
    selector = plan.rules[0].selectors[0]
    assert selector.matched - selector.passed_over == len(plan.entries)
    assert not passed & {entry.path for entry in plan.entries}
    assert any("passed over" in note for note in plan.notes)


def test_many_modules_take_time_in_proportion() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList(nn.ModuleDict({"a": nn.Linear(2, 2, device="meta")}) for _ in range(500))
    assert len(decided("adapt layers[0..249].a rank 1", model)) == 250
    assert torch.device("meta") == next(model.parameters()).device
