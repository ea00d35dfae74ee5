"""What a rule leaves out is left out before anything is refused; and which parameters are experts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lorakit
from lorakit.planning.plan import Plan


class Clipped(nn.Module):
    """A projection that no adapter fits, around one that an adapter does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.bound = nn.Parameter(torch.zeros(1))


class Block(nn.Module):
    def __init__(self, odd: bool) -> None:
        super().__init__()
        self.q = Clipped() if odd else nn.Linear(4, 4)


class Towers(nn.Module):
    """Two towers of which one has projections of its own kind, and a third block of that kind in the other."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.ModuleList([Block(False), Block(False), Block(True)])
        self.vision = nn.ModuleList([Block(True), Block(True)])


def decided(text: str, model: nn.Module | None = None) -> list[str]:
    return [entry.path for entry in lorakit.plan(text, model or Towers()).entries]


@pytest.mark.parametrize(
    "rule",
    [
        "adapt q rank 2 except vision, text[2]",
        "adapt text.0.q, text.1.q, vision.0.q rank 2 except vision",
        "adapt text.0.q, text.1.q, vision.0.q rank 2 except :Clipped",
        "adapt text.0.q, text.1.q, vision.0.q rank 2 except /vision.*/",
        "adapt text.0.q, text.1.q, vision.1.q rank 2 except vision[1].q",
        "adapt text[0..2].q rank 2 except text.2",
        "adapt *.q rank 2 except vision, text.2",
        "adapt /.*q/ rank 2 except vision, text.2",
        "adapt :Linear rank 2 except vision, text.2",
        "adapt @linear rank 2 except vision, text.2",
        "adapt q rank 2 layers 0..1 except vision",
        "quantize q int8 except vision, text.2",
    ],
)
def test_what_is_left_out_is_never_refused(rule: str) -> None:
    assert decided(rule) == ["text.0.q", "text.1.q"]


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ("adapt q rank 2 except vision", "no adapter fits `text.2.q`, a Clipped"),
        ("adapt q rank 2 layers 1..2", "no adapter fits `text.2.q`"),
        ("adapt vision.0.q rank 2 except vision", "`except` takes out all it matched"),
        ("adapt vision.* rank 2 except vision", "`except` takes out all it matched"),
        ("adapt text.0.q rank 2 layers 2", "`layers` takes out all it matched"),
        ("adapt :Clipped rank 2 except text", "no adapter fits `vision.0.q`"),
        ("adapt q rank 2 except nowhere", "`except nowhere` matches no module"),
    ],
)
def test_what_is_left_is_refused_as_before(rule: str, complaint: str) -> None:
    with pytest.raises(lorakit.PlanError, match=complaint):
        decided(rule)


def test_what_was_left_out_is_not_counted_as_passed_over() -> None:
    plan = lorakit.plan("adapt *.q rank 2 except vision", Towers())
    assert any("passed over 1 module" in note for note in plan.notes)


def test_a_container_above_the_layers_trains_those_that_are_left() -> None:
    assert decided("train text layers 0..1") == ["text.0.q", "text.1.q"]


class Holder(nn.Module):
    """A Linear, and parameters of three dimensions by name."""

    def __init__(self, **shapes: tuple[int, int, int]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


class Experts(Holder):
    pass


@pytest.mark.parametrize(
    ("model", "experts"),
    [
        (Holder(position_embedding_table=(2, 64, 16)), []),
        (Holder(relative_height=(4, 15, 8), relative_width=(4, 15, 8)), []),
        (Holder(q=(32, 4, 8), k=(32, 4, 8), v=(32, 4, 8), o=(32, 4, 8)), []),
        (Holder(table=(2, 16, 8), other=(3, 8, 16)), []),
        (Experts(weight=(4, 16, 8)), ["weight"]),
        (Holder(expert_weight=(4, 16, 8)), ["expert_weight"]),
        (Holder(up=(4, 16, 8), down=(4, 8, 16)), ["up", "down"]),
        (Holder(gate_up=(4, 8, 32), down=(4, 16, 8)), ["gate_up", "down"]),
    ],
    ids=["positions", "relative positions", "heads", "tables", "class", "name", "two of x Wt", "two of x W"],
)
def test_which_parameters_are_experts(model: nn.Module, experts: list[str]) -> None:
    rest = lorakit.plan("adapt linear rank 1", model)
    assert any("expert stacks" in note for note in rest.notes) == bool(experts)
    if experts:
        assert decided("adapt @experts rank 2", model) == experts
        return
    with pytest.raises(lorakit.PlanError, match="matches no module"):
        decided("adapt @experts rank 2", model)
    assert decided("adapt * rank 2", model) == ["linear"]
    # whoever names it means it
    name = next(name for name, value in model.named_parameters() if value.ndim == 3)
    assert decided(f"adapt {name} rank 2", model) == [name]


def test_a_plan_that_trains_what_it_quantizes_changes_nothing() -> None:
    """No spec gives such a plan; a file that someone wrote may. Found by mutating plans."""
    model = Block(False)
    text = lorakit.plan("adapt q rank 2 quant int8", model).to_json()
    assert '"train": false' in text
    plan = Plan.from_json(text.replace('"train": false', '"train": true'))
    with pytest.raises(lorakit.PlanError, match="`q` is stored quantized"):
        lorakit.apply(plan, model)
    assert type(model.q) is nn.Linear
