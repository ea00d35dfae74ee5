"""What `init --from` writes adapts what PEFT adapts: the same modules, ranks, scalings, dropouts, dtypes and starts."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import re
import warnings
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, assume, given, settings
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

import lorakit
from helpers import make_gpt2, make_llama
from lorakit.foreign.writing import foreign_spec
from lorakit.language.format import format_text
from lorakit.language.spec import Spec

# module by path: rank, scaling, dropout, dtype; and the names of all other parameters that train
Adapted = tuple[dict[str, tuple[Any, ...]], set[str]]


@functools.cache
def _model(name: str) -> nn.Module:
    made = {"llama": make_llama, "gpt2": make_gpt2, "llama in bf16": make_llama}[name]()
    return made.bfloat16() if name.endswith("bf16") else made


def by_peft(name: str, config: dict[str, Any]) -> Adapted:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(copy.deepcopy(_model(name)), LoraConfig(**config))
    found = {
        path.removeprefix("base_model.model."): (
            module.r["default"],
            pytest.approx(module.scaling["default"]),
            getattr(module.lora_dropout["default"], "p", 0.0),
            str(next(iter((*module.lora_A.parameters(), *module.lora_embedding_A.parameters()))).dtype),
        )
        for path, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    whole = {
        re.sub(r"\.modules_to_save\.default|\.base_layer", "", one.removeprefix("base_model.model."))
        for one, parameter in model.named_parameters()
        if parameter.requires_grad and "lora_" not in one
    }
    return found, whole


def by_lorakit(name: str, spec: str) -> Adapted:
    plan = lorakit.plan(spec, _model(name))
    model = lorakit.apply(plan, copy.deepcopy(_model(name)))
    found = {
        entry.path: (
            entry.adapter.settings.rank,
            entry.adapter.settings.factor,
            entry.adapter.settings.dropout,
            str(model.get_parameter(f"{entry.path}.lora_A").dtype),
        )
        for entry in plan.entries
        if entry.adapter is not None
    }
    whole = {
        one.replace(".base_layer", "")
        for one, parameter in model.named_parameters()
        if parameter.requires_grad and "lora_" not in one
    }
    return found, whole


def converted(config: dict[str, Any], folder: Path) -> str:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "LORA", **config}))
    return foreign_spec(path)


def same(name: str, config: dict[str, Any], folder: Path) -> str:
    spec = converted(config, folder)
    assert format_text(spec) == spec
    theirs, ours = by_peft(name, config), by_lorakit(name, spec)
    assert ours == theirs, spec
    return spec


LLAMA: dict[str, dict[str, Any]] = {
    "names": {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 12, "lora_dropout": 0.1},
    "default rank and alpha": {"target_modules": ["q_proj"]},
    "longer names": {"target_modules": ["self_attn.q_proj", "layers.1.mlp.up_proj"], "r": 4},
    "a name within another": {"target_modules": ["q_proj", "self_attn.q_proj", "mlp.up_proj"], "r": 4},
    "all-linear": {"target_modules": "all-linear", "r": 4, "use_rslora": True, "lora_alpha": 3},
    "a regex": {"target_modules": r".*\.(q|gate)_proj", "r": 4},
    "a regex with slashes": {"target_modules": r"model\.layers\.[01]\.mlp\..*_proj|a/b", "r": 4},
    "rsLoRA": {"target_modules": ["o_proj"], "r": 9, "lora_alpha": 6, "use_rslora": True},
    "layers": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "one layer": {"target_modules": ["q_proj"], "layers_to_transform": 0},
    "layers of a container": {
        "target_modules": ["q_proj", "mlp.up_proj"], "layers_to_transform": [0], "layers_pattern": "layers",
    },
    "layers of a container, and what a regex leaves out": {
        "target_modules": ["q_proj", "up_proj"], "layers_to_transform": 0, "layers_pattern": "layers",
        "exclude_modules": ".*q_proj",
    },
    "layers of containers, one a regex": {
        "target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "lay.*"],
    },
    "layers of a container with ranks": {
        "target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0], "layers_pattern": ["layers"],
        "rank_pattern": {"q_proj": 2, "layers.0.mlp.up_proj": 3},
    },
    "left out": {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
    "left out and no target": {"target_modules": ["q_proj"], "exclude_modules": ["self_attn", "gate_proj"]},
    "a target left out": {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj"]},
    "left out by a regex": {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*\.0\..*"},
    "a regex without names": {"target_modules": r".*_proj", "exclude_modules": ["q_proj", "mlp"]},
    "all-linear without some": {"target_modules": "all-linear", "exclude_modules": ["q_proj", "down_proj"]},
    "ranks by name": {"target_modules": ["q_proj", "v_proj"], "r": 8, "rank_pattern": {"q_proj": 4}},
    "ranks of every target": {
        "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 4, "v_proj": 2},
        "alpha_pattern": {"v_proj": 3},
    },
    "ranks by path": {
        "target_modules": ["q_proj"],
        "rank_pattern": {"model.layers.0.self_attn.q_proj": 4, "model.layers.1.self_attn.q_proj": 2},
    },
    "ranks by escaped path": {
        "target_modules": ["q_proj"], "rank_pattern": {r"^model\.layers\.0\.self_attn\.q_proj": 4},
    },
    "ranks and alphas that cross": {
        "target_modules": ["q_proj", "k_proj", "up_proj"], "r": 4, "lora_alpha": 8,
        "rank_pattern": {"self_attn.q_proj": 2, "q_proj": 3, "up_proj": 5},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 1, "q_proj": 4},
    },
    "ranks by regex": {
        "target_modules": ["q_proj", "k_proj"], "rank_pattern": {r"layers\.[1-9]\..*": 2, "q_proj": 3},
        "alpha_pattern": {r".*\.k_.*": 5},
    },
    "all-linear with ranks": {
        "target_modules": "all-linear", "rank_pattern": {"q_proj": 2, "lm_head": 3, "mlp.up_proj": 4},
    },
    "all-linear with ranks by regex": {"target_modules": "all-linear", "rank_pattern": {".*_proj": 2}},
    "a regex with ranks": {"target_modules": r".*\.[qk]_proj", "rank_pattern": {"q_proj": 2, "up_proj": 3}},
    "layers with ranks": {
        "target_modules": ["q_proj", "k_proj"], "layers_to_transform": [1], "rank_pattern": {"q_proj": 3},
        "alpha_pattern": {"k.*": 2},
    },
    "trained in full": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "trained by an ending": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
    "a target trained in full": {"target_modules": ["q_proj", "k_proj"], "modules_to_save": ["k_proj"]},
    "all-linear with some trained": {"target_modules": "all-linear", "modules_to_save": ["lm_head", "mlp"]},
    "a regex with some trained": {"target_modules": ".*(_proj|lm_head)", "modules_to_save": ["lm_head"]},
    "an embedding and the head": {"target_modules": ["embed_tokens", "lm_head", "q_proj"], "r": 4},
    "for a language model": {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "bias": "none"},
}  # fmt: skip
GPT2: dict[str, dict[str, Any]] = {
    "names": {"target_modules": ["c_attn"], "fan_in_fan_out": True, "r": 4},
    "names in two places": {"target_modules": ["c_proj"], "rank_pattern": {"mlp.c_proj": 3}, "fan_in_fan_out": True},
    "all-linear": {"target_modules": "all-linear", "fan_in_fan_out": True},
    "biases": {"target_modules": ["c_attn", "c_fc"], "bias": "lora_only", "fan_in_fan_out": True},
    "layers": {"target_modules": ["c_attn"], "layers_to_transform": [1], "layers_pattern": "h", "fan_in_fan_out": True},
    "an embedding": {"target_modules": ["wte", "wpe"], "r": 4},
    "trained in full": {"target_modules": ["c_attn"], "modules_to_save": ["ln_f", "ln_1"], "fan_in_fan_out": True},
}


@pytest.mark.parametrize("name", LLAMA)
def test_llama(name: str, tmp_path: Path) -> None:
    same("llama", LLAMA[name], tmp_path)


@pytest.mark.parametrize("name", GPT2)
def test_gpt2(name: str, tmp_path: Path) -> None:
    same("gpt2", GPT2[name], tmp_path)


def test_adapters_stay_in_fp32_beside_weights_in_half_precision(tmp_path: Path) -> None:
    same("llama in bf16", {"target_modules": ["q_proj"], "r": 4}, tmp_path)


NAMES = st.sampled_from(
    ["q_proj", "k_proj", "v_proj", "up_proj", "self_attn.q_proj", "mlp.up_proj", "layers.0.self_attn.q_proj"]
)
KEYS = NAMES | st.sampled_from(
    [
        r"^model\.layers\.1\.self_attn\.k_proj",
        r"layers\.[1-9]\.self_attn\..*",
        ".*_proj",
        "[qk]_proj",
    ]
)
LISTS = st.lists(NAMES, min_size=1, max_size=4, unique=True)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Return fields of a LoraConfig in every combination that PEFT takes."""
    targets = draw(LISTS | st.sampled_from(["all-linear", r".*\.[qku]\w*_proj", r".*layers\.0\..*_proj"]))
    config: dict[str, Any] = {
        "target_modules": targets,
        "r": draw(st.integers(1, 9)),
        "lora_alpha": draw(st.integers(1, 40)),
        "lora_dropout": draw(st.sampled_from([0.0, 0.05, 0.5])),
        "use_rslora": draw(st.booleans()),
        "init_lora_weights": draw(st.sampled_from([True, "gaussian"])),
        "rank_pattern": draw(st.dictionaries(KEYS, st.integers(1, 9), max_size=3)),
        "alpha_pattern": draw(st.dictionaries(KEYS, st.integers(1, 9), max_size=3)),
        "modules_to_save": draw(st.none() | st.lists(st.sampled_from(["lm_head", "norm", "v_proj"]), max_size=2)),
        "exclude_modules": draw(st.none() | LISTS | st.sampled_from([r".*\.1\..*_proj", r".*k_proj"])),
    }
    if isinstance(targets, list) and draw(st.booleans()):
        config["layers_to_transform"] = draw(st.sampled_from([0, [1], [0, 1]]))
        config["layers_pattern"] = draw(st.sampled_from([None, "layers", ["h", "layers"], "l.*s"]))
    return config


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs())
def test_any_config(config: dict[str, Any], tmp_path: Path) -> None:
    try:
        theirs = by_peft("llama", config)
    except ValueError:
        # nothing is left to adapt
        assume(False)
    spec = converted(config, tmp_path)
    assert format_text(spec) == spec
    # what selects nothing is an error in a spec, and passes in PEFT
    lenient = str(_optional(lorakit.parse(spec)))
    assert by_lorakit("llama", lenient) == theirs, spec


def _optional(spec: Spec) -> Spec:
    return dataclasses.replace(spec, rules=tuple(dataclasses.replace(rule, optional=True) for rule in spec.rules))
