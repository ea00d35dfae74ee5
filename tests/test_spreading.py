"""The memory of a step on each of several devices; what devices then hold is in `trainers/test_sharded_training.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import lorakit
from helpers import make_llama
from lorakit.cli.main import app
from lorakit.pipeline import inventory_of
from lorakit.planning.plan import Plan
from lorakit.planning.spreading import spread
from lorakit.plugins import default_plugins

SPECS = [
    "adapt q_proj rank 4 dtype fp32",
    "adapt q_proj,v_proj rank 3 quant nf4 double bias adapter\ntrain lm_head\nstep compute bf16",
    "adapt embed_tokens rank 2\nquantize @linear int8",
]


def memory(spec: str, **step: Any) -> Any:
    return lorakit.plan(spec, make_llama(attention_bias=True), **step).memory


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.filterwarnings("ignore")
def test_the_parts_for_one_device_are_the_whole(spec: str, is_tied: bool) -> None:
    model = make_llama(attention_bias=True, tie_word_embeddings=is_tied)
    plan = lorakit.plan(spec.replace("lm_head", "model.norm") if is_tied else spec, model)
    inventory = inventory_of(model, default_plugins())
    parts = spread(plan.memory, inventory, plan.entries, plan.compute)
    for name in ("weights", "adapters", "gradients", "optimizer"):
        assert getattr(parts, name) == getattr(plan.memory, name), name


def test_each_way_spreads_what_it_says() -> None:
    whole, sharded, replicated = (
        memory(SPECS[0], **given) for given in ({}, {"devices": 2}, {"devices": 2, "frozen": "replicate"})
    )
    for one in (sharded, replicated):
        assert (one.gradients, one.adapters) == (whole.gradients // 2, whole.adapters // 2)
        assert (one.activations, one.workspace, one.weights_before) == (
            whole.activations, whole.workspace, whole.weights_before
        )  # fmt: skip
        assert one.gathered > 0
    assert (sharded.weights, replicated.weights) == (whole.weights // 2, whole.weights)
    # the adapters, and their gradients
    assert replicated.gathered == whole.adapters + whole.gradients
    assert sharded.peak - sharded.gathered < whole.peak


def test_promises_are_of_a_device() -> None:
    whole = memory(SPECS[0], batch=1, tokens=16)
    replicated = memory(SPECS[0], batch=1, tokens=16, devices=8, frozen="replicate")
    assert replicated.peak < whole.peak
    spec = f"{SPECS[0]}\nrequire peak_memory <= {(replicated.peak + whole.peak) // 2}B"
    with pytest.raises(lorakit.PlanError, match="breaks this promise"):
        memory(spec, batch=1, tokens=16)
    memory(spec, batch=1, tokens=16, devices=8, frozen="replicate")


def test_a_plan_for_one_device_says_nothing_of_devices() -> None:
    model = make_llama()
    for devices in (1, 2):
        plan = lorakit.plan(SPECS[0], model, devices=devices)
        assert ("devices" in json.loads(plan.to_json())["memory"]) == (devices > 1)
        assert Plan.from_json(plan.to_json()) == plan
        assert lorakit.plan(plan, model).memory == plan.memory
    with pytest.raises(lorakit.PlanError, match="a step runs on 1 device or more, not 0"):
        Plan.from_json(plan.to_json().replace('"devices": 2', '"devices": 0'))


def test_the_command(llama_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.lora").write_text(SPECS[0])
    given = ["plan", str(tmp_path / "a.lora"), str(llama_folder)]
    alone = CliRunner().invoke(app, given)
    assert alone.exit_code == 0 and "gathered" not in alone.output and "devices" not in alone.output
    for frozen, words in (("shard", "frozen weights sharded"), ("replicate", "frozen weights on each")):
        done = CliRunner().invoke(app, [*given, "--devices", "2", "--frozen", frozen], env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        assert f"memory of a training step, each of 2 devices, {words}" in done.output and "gathered" in done.output
    fits = CliRunner().invoke(app, [*given, "--devices", "2", "--fit", "1GiB"])
    assert fits.exit_code == 0 and "fits 1GiB as it is" in fits.output
