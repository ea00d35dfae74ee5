"""The Plan: what rules decide, what is refused and where, and its way to JSON and back."""

from __future__ import annotations

import json

import pytest
from torch import nn

import lorakit
from helpers import QLORA, make_llama
from lorakit.planning.plan import Plan


def findings(text: str, model: nn.Module) -> list[tuple[str, int, int]]:
    with pytest.raises(lorakit.PlanError) as caught:
        lorakit.plan(text, model)
    return [(found.code, found.line, found.column) for found in caught.value.diagnostics]


def message(text: str, model: nn.Module) -> str:
    with pytest.raises(lorakit.PlanError) as caught:
        lorakit.plan(text, model)
    return str(caught.value)


def test_json_round_trip(llama: nn.Module) -> None:
    text = "adapt @attention rank 4 init gaussian(sigma=0.5) quant nf4(blocksize=128) double\ntrain @norm lr 1e-3"
    plan = lorakit.plan(f"{text}\noptimizer adamw(betas=(0.8, 0.9)) lr 1e-4 paged", llama)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.optimizer.call.options == (("betas", (0.8, 0.9)),)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": 99}, "version 99"),
        ({"surprise": 1}, "no field 'surprise'"),
        ({"entries": 3}, "expected a list"),
        ({"model_parameters": "many"}, "model_parameters: expected int"),
        ({"entries.adapter.dtype": "load"}, "dtype is one of bfloat16, float16, float32, not 'load'"),
        ({"entries.adapter.settings.rank": -4}, "rank must be 1 or more"),
    ],
)
def test_a_plan_that_is_none_is_refused(llama: nn.Module, change: dict[str, object], complaint: str) -> None:
    plain = json.loads(lorakit.plan(QLORA, llama).to_json())
    for path, value in change.items():
        *above, last = path.split(".")
        holder = plain
        for name in above:
            holder = holder[name][0] if isinstance(holder[name], list) else holder[name]
        holder[last] = value
    with pytest.raises(lorakit.PlanError, match=complaint):
        Plan.from_json(json.dumps(plain))


def test_a_plan_needs_no_weights() -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(num_hidden_layers=2, hidden_size=64, intermediate_size=96, num_attention_heads=4)
    from_config = lorakit.plan("adapt q_proj rank 4", config)
    assert [entry.path for entry in from_config.entries] == [f"model.layers.{n}.self_attn.q_proj" for n in range(2)]


def test_later_rules_replace_earlier_ones_whole(llama: nn.Module) -> None:
    plan = lorakit.plan(
        "adapt @attention rank 2 quant nf4\nadapt q_proj rank 4 alpha 8\nquantize @linear fp4 double", llama
    )
    query, key = plan.entry("model.layers.0.self_attn.q_proj"), plan.entry("model.layers.0.self_attn.k_proj")
    gate = plan.entry("model.layers.0.mlp.gate_proj")
    assert (
        query is not None
        and query.adapter is not None
        and (query.adapter.settings.rank, query.adapter.settings.factor) == (4, 2.0)
    )
    assert query.quant is None and query.decided_by == ("<text>:2",)
    assert key is not None and key.quant is not None and key.quant.name == "nf4"
    assert gate is not None and gate.adapter is None and gate.quant is not None and gate.decided_by == ("<text>:3",)


def test_every_selector_that_matches_nothing_is_reported_at_its_place(llama: nn.Module) -> None:
    assert findings("adapt q_proj,k_porj,nothing_like_it rank 2\nadapt v_proj except w_proj rank 2", llama) == [
        ("L101", 1, 14),
        ("L101", 1, 21),
        ("L101", 2, 21),
    ]
    assert "did you mean `k_proj`?" in message("adapt k_porj rank 2", llama)
    assert lorakit.plan("adapt q_proj rank 2\nadapt nothing rank 2 optional", llama).added


def test_a_module_named_outright_that_no_adapter_fits(llama: nn.Module) -> None:
    text = message("adapt self_attn rank 2", llama)
    assert "error[L102]: no adapter fits `model.layers.0.self_attn`, a LlamaAttention" in text
    assert "lorakit_adapt_module" in text and "`self_attn.*`" in text


def test_a_rank_larger_than_the_layer_points_at_the_rank(llama: nn.Module) -> None:
    assert findings("adapt v_proj rank 33", llama) == [("L103", 1, 19)]
    assert "32" in message("adapt v_proj rank 33", llama)
    assert lorakit.plan("adapt v_proj rank 32", llama).added


@pytest.mark.parametrize(
    ("spec", "places"),
    [
        ("adapt layers[0..70].q_proj rank 2", [("L108", 1, 14)]),
        ("adapt layers[-3,0].q_proj,layers[2].k_proj rank 2", [("L108", 1, 14), ("L108", 1, 34)]),
        ("adapt q_proj rank 2 layers 0..2", [("L108", 1, 28)]),
        ("quantize @linear nf4 layers 7..9", [("L108", 1, 29)]),
        ("adapt q_proj rank 2 except layers[4].*", [("L108", 1, 35)]),
    ],
)
def test_a_range_beyond_the_model_is_an_error(llama: nn.Module, spec: str, places: list[tuple[str, int, int]]) -> None:
    assert findings(spec, llama) == places


def test_a_range_beyond_the_model_says_how_many_layers_there_are(llama: nn.Module) -> None:
    with pytest.raises(lorakit.PlanError, match=r"70 is out of range: `model.layers` has 2 layers, 0 to 1") as raised:
        lorakit.plan("adapt layers[0..70].q_proj rank 2", llama)
    assert raised.value.diagnostics[0].suggestion == "write `0..1`; or mark the rule `optional`"
    for within in ("layers[0..70].q_proj rank 2 optional", "layers[-2..1].q_proj rank 2 layers 0..1"):
        assert lorakit.plan(f"adapt {within}", llama).rules[0].modules == 2


def test_of_several_towers_the_longest_counts() -> None:
    towers = nn.ModuleDict({"a": nn.Sequential(nn.Linear(4, 4)), "b": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))})
    assert lorakit.plan("adapt *[0..1] rank 2", towers).rules[0].modules == 3
    assert findings("adapt :Linear rank 2 layers 1..2", towers) == [("L108", 1, 29)]


def test_a_rule_that_decides_nothing_is_an_error(llama: nn.Module) -> None:
    assert findings("adapt q_proj rank 2\nadapt @attention rank 4", llama) == [("L104", 1, 1)]
    assert findings("quantize q_proj nf4\nquantize @attention nf4", llama) == [("L104", 1, 1)]
    # to quantize everything else is no contradiction where nothing else is left
    assert lorakit.plan("adapt @linear rank 2\nquantize q_proj nf4", llama).rules[1].modules == 0
    assert lorakit.plan("adapt q_proj rank 2 optional\nadapt @attention rank 4", llama).rules[0].modules == 0
    assert findings("adapt q_proj rank 2 layers 0 except layers[0].*", llama) == [("L101", 1, 1)]


def test_promises(llama: nn.Module) -> None:
    assert lorakit.plan("adapt q_proj rank 2\nrequire trainable < 1%\nrequire peak_memory <= 1GiB", llama).added
    text = message("adapt q_proj rank 2\nadapt v_proj rank 8\nrequire trainable < 0.1%", llama)
    # q: two layers of 2 · (64 + 64), v: two layers of 8 · (64 + 32)
    share = (2 * 2 * 128 + 2 * 8 * 96) / sum(value.numel() for value in llama.parameters())
    assert f"error[L105]: the plan breaks this promise: `trainable` is {share:.3%}" in text
    assert text.index("<text>:2 costs 1,536") < text.index("<text>:1 costs 512")


def test_conflicts_are_refused(llama: nn.Module) -> None:
    assert findings("adapt q_proj rank 2\ntrain q_proj", llama) == [("L107", 2, 1)]
    assert findings("adapt q_proj rank 2 bias adapter", llama) == [("L107", 1, 1)]
    tied = make_llama(tie_word_embeddings=True)
    text = message("quantize @head nf4", tied)
    assert "error[L106]" in text and "`model.embed_tokens.weight`" in text
    assert "both ends train" in " ".join(lorakit.plan("train @head", tied).notes)


@pytest.mark.parametrize(
    ("target", "why"),
    [("embed_tokens", "is a lookup"), ("in_proj_weight", "is a parameter"), ("out_proj", "not always")],
)
def test_dropout_where_no_adapter_can_honour_it_is_refused(target: str, why: str) -> None:
    model = nn.ModuleDict({"embed_tokens": nn.Embedding(16, 8), "attention": nn.MultiheadAttention(8, 2)})
    assert findings(f"adapt {target} rank 2 dropout 0.1", model) == [("L107", 1, 1)]
    assert why in message(f"adapt {target} rank 2 dropout 0.1", model)
    assert lorakit.plan(f"adapt {target} rank 2", model).added


@pytest.mark.parametrize(
    ("optimizer", "said", "paged"),
    [
        ("adamw", "131,080 of 2,228,240 bytes of optimizer state page", 131_080),
        ("sgd", "`sgd` keeps no state as it is configured, so there is nothing to page", 0),
        ("sgd(momentum=0.9)", "65,536 of 1,114,112 bytes of optimizer state page", 65_536),
    ],
)
def test_what_paged_comes_to_is_said(optimizer: str, said: str, paged: int) -> None:
    # of 64 · 2048 elements each, and of 4 · 2048: one paged rule pages what is its own
    model = nn.Sequential(nn.Linear(2048, 2048), nn.Linear(2048, 2048))
    text = f"adapt 0 rank 64\nadapt 1 rank 4 paged\noptimizer {optimizer}"
    plan = lorakit.plan(text, model)
    assert f"paged: {said}" in " ".join(plan.notes) and plan.memory.paged == paged
    # 131,080 bytes over 28.7 GB/s, and half of it
    cost = {131_080: "moves them in and out again, 0.0046 ms at 28.7 GB/s each way", 65_536: "0.0023 ms at 28.7 GB/s"}
    assert cost.get(paged, "nothing to page") in " ".join(plan.notes)
    assert lorakit.plan(f"{text} paged", model).memory.paged == plan.memory.optimizer
    unpaged = lorakit.plan(text.replace("paged", ""), model)
    assert "paged" not in " ".join(unpaged.notes) and unpaged.memory.paged == 0


def test_a_promise_may_hold_because_state_pages() -> None:
    model = nn.Sequential(nn.Linear(256, 256))
    rule = "adapt 0 rank 64"
    memory = lorakit.plan(rule, model).memory
    promise = f"require peak_memory <= {memory.peak - memory.optimizer}B"
    with pytest.raises(lorakit.PlanError, match="breaks this promise"):
        lorakit.plan(f"{rule}\n{promise}", model)
    plan = lorakit.plan(f"{rule} paged\n{promise}", model)
    assert plan.memory.peak == memory.peak
    assert (
        f"fits what the spec promises with {memory.optimizer:,} bytes of optimizer state in CPU memory" in plan.notes[0]
    )
    with pytest.raises(lorakit.PlanError, match="breaks this promise"):
        lorakit.plan(f"{rule} paged\nrequire peak_memory < {memory.peak - memory.optimizer}B", model)


def test_a_spec_without_rules_cannot_be_planned(llama: nn.Module) -> None:
    with pytest.raises(lorakit.PlanError, match="no rules"):
        lorakit.plan("let r = 4", llama)


def test_adapter_dtype_follows_the_base(llama: nn.Module) -> None:
    dtypes = {
        clauses: lorakit.plan(f"adapt q_proj rank 2 {clauses}", llama).entries[0].adapter.dtype  # type: ignore[union-attr]
        for clauses in ("", "quant nf4", "dtype fp16", "quant nf4 dtype fp32")
    }
    assert dtypes == {
        "": "float32",
        "quant nf4": "bfloat16",
        "dtype fp16": "float16",
        "quant nf4 dtype fp32": "float32",
    }


def test_rslora_scales_by_the_root_of_the_rank(llama: nn.Module) -> None:
    entry = lorakit.plan("adapt q_proj rank 16 alpha 8 scaling rslora", llama).entries[0]
    assert entry.adapter is not None and entry.adapter.settings.factor == 2.0


def test_a_step_of_the_spec_is_what_is_forecast_unless_something_else_is_asked_for(llama: nn.Module) -> None:
    spec = "adapt q_proj rank 2\nstep batch 3 tokens 40"
    planned = lorakit.plan(spec, llama).memory
    assert (planned.batch, planned.tokens) == (3, 40)
    asked = lorakit.plan(spec, llama, tokens=20).memory
    assert (asked.batch, asked.tokens) == (3, 20)
    assert lorakit.plan("adapt q_proj rank 2", llama).memory.tokens == 512
