"""`quant` stores the frozen model: how far it goes, what ends it, and that folders of before keep their meaning."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import lorakit
from architectures import ARCHITECTURES
from helpers import make_llama, randomize
from lorakit.builtin.fourbit import NF4
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.planning.difference import difference
from lorakit.planning.plan import Plan
from lorakit.plugins import load_plugins

LINE = "adapt q_proj,v_proj rank 4 quant nf4 double paged"
WRITTEN = f"{LINE}\nquantize @linear nf4 double"


def stored(plan: Plan) -> dict[str, str]:
    """Return what quantizes modules, by their last names."""
    return {entry.path.rpartition(".")[2]: entry.quant.name for entry in plan.entries if entry.quant}


def quantized(model: nn.Module) -> set[str]:
    return {
        path.removesuffix(".base_layer").rpartition(".")[2]
        for path, module in model.named_modules()
        if isinstance(module, QuantizedLinear)
    }


def notes(plan: Plan) -> str:
    return "\n".join(plan.notes)


SEVEN = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_the_line_stores_the_frozen_model(llama: nn.Module, tokens: Tensor) -> None:
    plan, written = lorakit.plan(LINE, llama), lorakit.plan(WRITTEN, llama)
    assert stored(plan).keys() == SEVEN
    assert [(rule.keyword, rule.targets, rule.quant, rule.modules, rule.reached) for rule in plan.rules] == [
        ("adapt", "q_proj, v_proj", "", 4, False),
        ("quantize", "@linear", "nf4 double", 10, True),
    ]
    assert plan.rules[1].place == plan.rules[0].place == "<text>:1"
    assert "`quantize @linear none` leaves them" in notes(plan) and "quantize @linear" not in notes(written)
    assert plan.memory == written.memory and difference(plan, written).changes == ()
    assert Plan.from_json(plan.to_json()) == plan and lorakit.plan(Plan.from_json(plan.to_json()), llama) == plan
    one, other = lorakit.apply(plan, llama), lorakit.apply(written, make_llama().eval())
    assert quantized(one) == SEVEN and type(one.lm_head) is nn.Linear
    assert {row.weight_dtype for row in lorakit.summary(one).modules} == {"nf4 double"}
    assert torch.equal(one(tokens).logits, other(tokens).logits)
    # a Spec stays what was written
    assert str(lorakit.parse(LINE)) == f"{LINE}\n"


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (f"{LINE}\nquantize @linear none", {"q_proj", "v_proj"}),
        (f"{LINE}\nquantize o_proj none", {"q_proj", "v_proj"}),
        (f"{LINE}\nquantize o_proj fp4", {"q_proj", "v_proj", "o_proj"}),
        # `none` stands in the cascade like any quantizer
        (f"{LINE}\nquantize @linear nf4\nquantize @mlp none", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        (f"{LINE}\nquantize @linear none\nquantize up_proj nf4", {"q_proj", "v_proj", "up_proj"}),
        # a rule without `quant` keeps its modules, as do modules that train
        (f"{LINE}\nadapt @mlp rank 2", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        (f"{LINE}\ntrain o_proj", SEVEN - {"o_proj"}),
        # the same quantizer with the same options, however they are written
        ("adapt q_proj rank 4 quant nf4\nadapt v_proj rank 4 quant nf4(blocksize=64)", SEVEN),
        ("adapt q_proj rank 4 quant nf4\nadapt v_proj rank 4 quant nf4 double", {"q_proj", "v_proj"}),
        ("adapt q_proj rank 4 quant nf4\nadapt v_proj rank 4 quant int8", {"q_proj", "v_proj"}),
        ("adapt q_proj rank 4", set()),
        ("adapt lm_head rank 4 quant nf4", SEVEN | {"lm_head"}),
    ],
)
def test_what_is_stored(spec: str, names: set[str], llama: nn.Module) -> None:
    plan = lorakit.plan(spec, llama)
    assert stored(plan).keys() == names
    assert plan.memory.weights <= plan.memory.weights_before
    assert sum(rule.reached for rule in plan.rules) == (names > {"q_proj", "v_proj"} and "quantize" not in spec)


def test_what_stays_as_it_is_is_counted_and_shown(llama: nn.Module) -> None:
    from test_views import shown

    from lorakit.planning.report import plan_view

    plan = lorakit.plan(f"{LINE}\nquantize @mlp none", llama)
    assert (plan.rules[1].quant, plan.rules[1].modules) == ("none", 6)
    assert not [entry for entry in plan.entries if "mlp" in entry.path]
    printed = shown(plan_view(plan))
    assert "quantize @mlp none" in printed and "stay as they are" in printed
    reached = shown(plan_view(lorakit.plan(LINE, llama)))
    assert "quantize @linear nf4 double (as line 1 has it)" in reached and "as line 1\n" in reached
    assert "as &lt;text&gt;:1" in lorakit.plan(LINE, llama)._repr_html_()
    assert [found.code for found in _findings("quantize @mlp none\nquantize @linear nf4", llama)] == ["L104"]
    assert [found.code for found in _findings("quantize nothing none", llama)] == ["L101"]


def _findings(spec: str, model: nn.Module) -> tuple[Any, ...]:
    with pytest.raises(lorakit.PlanError) as caught:
        lorakit.plan(spec, model)
    return caught.value.diagnostics


def test_different_quantizers_reach_no_further_and_the_plan_says_why(llama: nn.Module) -> None:
    plan = lorakit.plan("adapt q_proj rank 4 quant nf4 double\nadapt v_proj rank 4 quant int8", llama)
    assert "name nf4 double (<text>:1) and int8 (<text>:2)" in notes(plan) and "stay as they are" in notes(plan)
    # where nothing is left, there is nothing to say
    everything = "adapt @attention rank 4 quant nf4\nadapt @mlp rank 4 quant int8"
    assert "quantize @linear" not in notes(lorakit.plan(everything, llama))
    assert not any(rule.reached for rule in lorakit.plan("adapt @linear rank 4 quant nf4", llama).rules)


def test_the_rule_of_an_included_file_is_named(write: Callable[[str, str], Path], llama: nn.Module) -> None:
    write("part.lora", "# first\nlet q = [q_proj]\nadapt q rank 4 quant nf4\n")
    spec = write("main.lora", 'include "part.lora"\nadapt v_proj rank 4 quant nf4\n')
    (rule,) = (rule for rule in lorakit.plan(spec, llama).rules if rule.reached)
    assert rule.place.endswith("part.lora:3") and rule.modules == 10


def test_gpt2_and_experts(gpt2: nn.Module) -> None:
    assert stored(lorakit.plan("adapt c_attn rank 4 quant nf4", gpt2)).keys() == {"c_attn", "c_proj", "c_fc"}
    # expert stacks are no linear layers, whose router is one where its class is
    mixtral = ARCHITECTURES["mixtral"].build()
    linear = {entry.path for entry in lorakit.plan("adapt @linear rank 1", mixtral).entries}
    assert {entry.path for entry in lorakit.plan("adapt q_proj rank 1 quant nf4", mixtral).entries} == linear


class Odd(nn.Module):
    """Linear layers of which some cannot be stored, and one that goes by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 16)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.also = self.second
        self.out = nn.Linear(16, 12, bias=False)
        self.out.weight = self.embed.weight
        self.bent = nn.utils.parametrizations.weight_norm(nn.Linear(12, 12))
        self.narrow = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.bent(self.out(self.also(self.second(self.first(self.embed(x)))))))


@dataclass(frozen=True)
class Whole(NF4):
    """Stores rows that are whole blocks alone, and refuses all others when it is asked what they take."""

    name: ClassVar[str] = "whole"

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        if shape[1] % 16:
            raise ValueError(f"rows of {shape[1]} are no whole blocks of 16")
        return super().bits_per_weight(shape)


def test_layers_that_cannot_be_stored_are_passed_over_and_counted() -> None:
    plan = lorakit.plan("adapt first rank 2 quant nf4", Odd())
    # a tied weight stays tied, a weight that is computed stays computed
    assert [entry.path for entry in plan.entries] == ["first", "second", "narrow"]
    assert "`quant` passes over 2 linear layers, such as this: `out` shares its weight" in notes(plan)
    assert [one.passed_over for one in plan.rules[-1].selectors] == [2]
    model: Any = lorakit.apply(plan, Odd())
    assert model.also is model.second and isinstance(model.second, QuantizedLinear)
    assert model.out.weight is model.embed.weight and torch.isfinite(model(torch.arange(4))).all()
    plugins = load_plugins(modules={"sample 1.0": _Plugin})
    picky = lorakit.plan(lorakit.parse("adapt first rank 2 quant whole", plugins=plugins), Odd(), plugins=plugins)
    assert [entry.path for entry in picky.entries] == ["first", "second"]
    assert "passes over 3 linear layers" in notes(picky)
    alone = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 8))
    picky = lorakit.plan(lorakit.parse("adapt 0 rank 2 quant whole", plugins=plugins), alone, plugins=plugins)
    assert "passes over a linear layer: `whole` does not take `1`, which is 8 × 8: rows of 8 are no" in notes(picky)
    assert len(picky.rules) == 1
    # whoever names such a layer hears of it at its place
    with pytest.raises(lorakit.PlanError, match=r"L106.*`whole` does not take `1`"):
        lorakit.plan(lorakit.parse("adapt 1 rank 2 quant whole", plugins=plugins), alone, plugins=plugins)


class _Plugin:
    @staticmethod
    @lorakit.hookimpl
    def lorakit_quantizers() -> list[type[NF4]]:
        return [Whole]


def test_folders_of_before_keep_their_meaning(tokens: Tensor, tmp_path: Path) -> None:
    """A plan of version 2, whose text is the line, with entries for what it adapted alone."""
    model = lorakit.apply(f"{LINE}\nquantize @linear none", make_llama())
    randomize(model)
    folder = lorakit.save(model, tmp_path / "adapter")
    plain = json.loads((folder / "plan.json").read_text())
    plain |= {"version": 2, "source": LINE, "rules": plain["rules"][:1]}
    for rule in plain["rules"]:
        del rule["quant"], rule["reached"]
    (folder / "plan.json").write_text(json.dumps(plain))
    make_llama().save_pretrained(tmp_path / "base")
    wanted = model.eval()(tokens).logits
    for base in (make_llama(), tmp_path / "base"):
        loaded = lorakit.load(folder, base)
        assert quantized(loaded) == {"q_proj", "v_proj"}
        assert torch.equal(loaded(tokens).logits, wanted)
    plan = Plan.from_json((folder / "plan.json").read_text())
    again = lorakit.plan(plan, make_llama())
    assert stored(again).keys() == {"q_proj", "v_proj"} and not any(rule.reached for rule in again.rules)


def test_the_way_of_a_folder(tokens: Tensor, tmp_path: Path) -> None:
    make_llama().save_pretrained(tmp_path / "model")
    streamed, model = lorakit.apply(LINE, tmp_path / "model"), lorakit.apply(LINE, make_llama())
    for one in (streamed, model):
        randomize(one)
    wanted = model.eval()(tokens).logits
    assert torch.equal(streamed.eval()(tokens).logits, wanted)
    folder = lorakit.save(model, tmp_path / "adapter")
    only = lorakit.save(lorakit.apply(f"{LINE}\nquantize @linear none", make_llama()), tmp_path / "only")
    # PEFT hears of adapters alone
    assert (folder / "adapter_config.json").read_bytes() == (only / "adapter_config.json").read_bytes()
    for base in (tmp_path / "model", make_llama()):
        loaded = lorakit.load(folder, base)
        assert quantized(loaded) == SEVEN and torch.equal(loaded(tokens).logits, wanted)
    lorakit.save(streamed, tmp_path / "whole", with_base=True)
    config = json.loads((tmp_path / "whole" / "base" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "bitsandbytes" and config["llm_int8_skip_modules"] == ["lm_head"]
    again = lorakit.load(tmp_path / "whole", tmp_path / "whole" / "base")
    assert torch.equal(again(tokens).logits, wanted)
    merged = lorakit.merge(model)
    assert not quantized(merged)
    torch.testing.assert_close(merged(tokens).logits, wanted, rtol=1e-2, atol=1e-2)


def test_a_further_adapter_leaves_the_base_of_the_first(tokens: Tensor) -> None:
    model = lorakit.apply("adapt @mlp rank 2", make_llama())
    lorakit.apply("adapt q_proj rank 2", model, name="second")
    before = model(tokens).logits
    # the layers under the first adapter cannot be stored anew, and nobody asked for them
    with pytest.raises(lorakit.ModelError, match=r"quantizes `model.layers.0.self_attn.q_proj`, which would change"):
        lorakit.apply("adapt q_proj rank 2 quant nf4", model, name="third")
    assert torch.equal(model(tokens).logits, before)
    plan = lorakit.plan("adapt q_proj rank 2 quant nf4", model)
    assert stored(plan).keys() == {"q_proj"} and "passes over 12 linear layers" in notes(plan)
    # on a base that is stored so already, the line goes as far as it did
    base = lorakit.apply(LINE, make_llama())
    lorakit.apply("adapt o_proj rank 2 quant nf4 double", base, name="second")
    assert quantized(base) == SEVEN


def test_a_base_that_came_quantized_is_left_where_it_differs(tmp_path: Path) -> None:
    make_llama().save_pretrained(tmp_path / "model")
    lorakit.save(lorakit.apply("quantize @mlp int8", tmp_path / "model"), tmp_path / "out", with_base=True)
    plan = lorakit.plan("adapt q_proj rank 2 quant nf4", tmp_path / "out" / "base")
    assert stored(plan).keys() == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert "passes over 6 linear layers, such as this: `model.layers.0.mlp.gate_proj` holds its" in notes(plan)


def test_a_difference_says_why(llama: nn.Module) -> None:
    from test_views import shown

    from lorakit.planning.difference import difference_view

    before, after = lorakit.plan("adapt q_proj,v_proj rank 4", llama), lorakit.plan(LINE, llama)
    found = difference(before, after)
    assert {change.reason for change in found.changes if change.kind == "add"} == {"as <text>:1 has it"}
    assert {change.reason for change in found.changes if change.kind == "change"} == {""}
    assert "+ model.layers.*.mlp.up_proj  × 2  as <text>:1 has it" in shown(difference_view(found))


def test_a_large_model_with_a_narrow_layer_starts_with_all_of_it_stored() -> None:
    from lorakit.planning.reading import read_inventory
    from lorakit.planning.starter import starter_spec
    from lorakit.plugins import default_plugins

    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(16384, 16384) for _ in range(3)), nn.Linear(16384, 8))
    text = starter_spec(read_inventory(model, default_plugins()), default_plugins())
    assert "too narrow for this rank; stored in four bits like the rest" in text
    assert all(entry.quant for entry in lorakit.plan(text, model).entries)
