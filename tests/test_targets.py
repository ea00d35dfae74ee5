"""Which modules a target selects, against paths written out by hand."""

from __future__ import annotations

import re
import time
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lorakit
from helpers import make_gpt2, make_llama
from lorakit.planning.reading import read_inventory
from lorakit.planning.targets import Selection


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


class Deep(nn.Module):
    """Modules whose paths have many segments of few letters, to be selected in many ways."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2, device="meta")
        if depth:
            self.ab, self.ba = Deep(depth - 1), Deep(depth - 1)


SEGMENTS = st.lists(st.sampled_from(["a", "ab", "ba", "*", "a*", "*b", "*a*", "b*a", "**"]), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(SEGMENTS)
def test_globs_match_what_a_regex_of_the_same_meaning_does(segments: list[str]) -> None:
    meaning = {"**": r"(?:[^.]+\.)*"}
    words = [r"(?:[^.]+\.)*", *(meaning.get(one, one.replace("*", "[^.]*") + r"\.") for one in segments)]
    inventory = read_inventory(DEEP, lorakit.plugins.default_plugins())
    (rule,) = lorakit.parse(f"adapt {'.'.join(segments)} rank 1").rules
    expected = [path for path in inventory.modules if path and re.fullmatch("".join(words), f"{path}.")]
    assert list(Selection(inventory, {}).matches(rule.targets[0])) == expected


DEEP = Deep()


@pytest.mark.parametrize(
    "target",
    [
        "**." * 40 + "*z", "*.**." * 20 + "z*", "*" + "a*" * 25 + "z", "*a" * 25 + "*z",
        "/([a-z0-9_.]+)+!/", r"/(.*)*\.(.*)*\.(.*)*z/",
    ],
)  # fmt: skip
def test_a_target_that_could_be_tried_in_very_many_ways_is_refused_soon(target: str) -> None:
    model = nn.Sequential(OrderedDict([("a" * 60, Deep(6)), ("_".join("ab" * 30), nn.Linear(2, 2))]))
    begun = time.process_time()
    with pytest.raises(lorakit.PlanError, match="matches no module"):
        lorakit.plan(f"adapt {target} rank 1", model)
    assert time.process_time() - begun < 5


def test_a_regex_that_takes_too_long_is_an_error_at_its_place() -> None:
    model = nn.ModuleDict({"a" * 90: nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    with pytest.raises(lorakit.PlanError, match="takes too long") as caught:
        lorakit.plan("adapt b, /(?:a|aa)+[!?]/ rank 1", model)
    (found,) = caught.value.diagnostics
    assert (found.code, found.line, found.column) == ("L037", 1, 10)


@pytest.mark.parametrize(
    ("regex", "reason"),
    [("(?:a{99}){999}", "more than 10,000 repetitions"), ("a" * 1001, "has 1,001 characters"), ("(", "is no regex")],
)
def test_a_regex_that_is_too_large_is_found_without_a_model(regex: str, reason: str) -> None:
    with pytest.raises(lorakit.SpecError, match=f"L037.*{reason}"):
        lorakit.parse(f"adapt /{regex}/ rank 1")


def test_names_of_digits_that_are_no_numbers_are_names() -> None:
    model = nn.ModuleDict({name: nn.ModuleDict({"q": nn.Linear(2, 2)}) for name in ("²", "9" * 5000, "1")})
    assert decided("adapt q layers 0..1 rank 1", model) == ["1.q"]
