"""`schedulefree`: against the paper's recursion, and in whole journeys through lorakit's and transformers' loops."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lorakit
from lorakit.paging import Paged
from lorakit.testing import Check, optimizer_checks
from lorakit_schedulefree import ScheduleFree

OPTIONS: list[dict[str, Any]] = [{}, {"betas": (0.95, 0.99), "weight_decay": 0.1, "warmup_steps": 5}]
NET = """
import torch

def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 8))

def pairs():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 8, generator=generator)
    return [(x, x.flip(0)) for x in inputs]
"""


@pytest.mark.parametrize(
    "check", [check for options in OPTIONS for check in optimizer_checks(ScheduleFree, **options)], ids=str
)
def test_conformance(check: Check) -> None:
    check()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_steps_as_the_paper_says(options: dict[str, Any]) -> None:
    """Algorithm 1 of arXiv:2405.15682, in float64, with the average weighted by the square of the learning rate."""
    made, lr = ScheduleFree(**options), 0.05
    (beta1, beta2), decay, warmup = made.betas, made.weight_decay, made.warmup_steps
    start = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parameter = nn.Parameter(start.clone())
    optimizer: Any = made.build([{"params": [parameter], "lr": lr}])
    x, z, moment, total = start.clone(), start.clone(), torch.zeros_like(start), 0.0
    for step in range(1, 13):
        y = (1 - beta1) * z + beta1 * x
        torch.testing.assert_close(parameter.detach(), y)
        gradient = y.sin() + y
        moment = beta2 * moment + (1 - beta2) * gradient**2
        rate = lr * min(1.0, step / warmup if warmup else 1.0)
        direction = gradient / ((moment / (1 - beta2**step)).sqrt() + made.eps)
        z = z - rate * (direction + decay * y)
        total += rate**2
        x = x + rate**2 / total * (z - x)
        parameter.grad = parameter.detach().sin() + parameter.detach()
        optimizer.step()
    optimizer.eval()
    torch.testing.assert_close(parameter.detach(), x)
    optimizer.train()
    torch.testing.assert_close(parameter.detach(), (1 - beta1) * z + beta1 * x)


def test_bad_options_are_refused_at_their_place() -> None:
    for option, complaint in (
        ("betas=(0, 0.999)", "betas must be below 1, the first above 0"),
        ("eps=0", "eps must be above 0"),
        ("weight_decay=-1", "weight_decay must not be negative"),
        ("warmup_steps=-1", "warmup_steps must not be negative"),
    ):
        with pytest.raises(lorakit.SpecError, match=complaint):
            lorakit.parse(f"adapt q rank 2\noptimizer schedulefree({option})")


def test_a_paged_run_has_the_bits_of_an_unpaged_one() -> None:
    weights = []
    for paged in ("", " paged"):
        model = lorakit.apply(f"adapt q_proj rank 2 dtype fp32\noptimizer schedulefree lr 1e-3{paged}", make_llama())
        optimizer: Any = lorakit.optimizer(model)
        assert isinstance(optimizer, Paged) == bool(paged)
        for _ in range(3):
            model(make_tokens(), labels=make_tokens()).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if paged:
                assert optimizer.page_out() > 0 and optimizer.near_bytes == 0
        optimizer.eval()
        assert {group["k"] for group in optimizer.param_groups} == {3}
        weights.append([parameter.detach() for parameter in model.parameters() if parameter.requires_grad])
    assert all(map(torch.equal, *weights))


def make_llama() -> Any:
    """Return a random two-layer Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


def make_tokens() -> Tensor:
    return torch.randint(0, 128, (2, 12), generator=torch.Generator().manual_seed(1))


def lorakit_command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lorakit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


SPEC = "adapt q_proj,v_proj rank 4 dtype fp32\noptimizer schedulefree(betas=(0.9, 0.99), warmup_steps=2) lr 1e-2"


def test_apply_train_save_load_merge(tmp_path: Path) -> None:
    tokens = make_tokens()
    model = lorakit.apply(SPEC, make_llama())
    optimizer: Any = lorakit.optimizer(model)
    losses = []
    for _ in range(3):
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    state = sum(value.numel() * value.element_size() for one in optimizer.state.values() for value in one.values())
    assert state == lorakit.plan(SPEC, make_llama()).memory.optimizer
    optimizer.eval()
    with torch.no_grad():
        trained = model(tokens).logits
        again = lorakit.load(lorakit.save(model, tmp_path / "adapter"), make_llama())
        assert torch.equal(again(tokens).logits, trained)
        torch.testing.assert_close(lorakit.merge(again)(tokens).logits, trained, rtol=1e-4, atol=1e-5)


def test_transformers_trainer_switches_by_itself(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": row, "labels": row} for row in make_tokens().repeat(4, 1)]
    model = lorakit.apply(SPEC, make_llama())
    optimizer: Any = lorakit.optimizer(model)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=2,
        lr_scheduler_type="constant",
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, optimizers=(optimizer, None))
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    # the last evaluation left the average in the model
    assert not any(group["train_mode"] for group in optimizer.param_groups)
    assert trainer.evaluate()["eval_loss"] < before


def test_train_on_the_command_line_with_a_checkpoint_to_resume_from(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    spec = tmp_path / "spec.lora"
    spec.write_text("adapt 0,2 rank 4\noptimizer schedulefree lr 2e-2\n")
    common: list[str | Path] = [
        "train",
        spec,
        f"{tmp_path / 'net.py'}:net",
        f"{tmp_path / 'net.py'}:pairs",
        "-o",
        tmp_path / "out",
    ]
    trained = lorakit_command(*common, "--steps", "12", "--save-every", "6", "--held-out", "0.25")
    assert trained.returncode == 0, trained.stderr
    measured = [
        float(line.split(": ")[1].split()[0]) for line in trained.stdout.splitlines() if "held-out loss" in line
    ]
    assert measured[-1] < measured[0]
    whole = load_file(tmp_path / "out" / "adapter_model.safetensors")
    checkpoint = tmp_path / "out-checkpoints" / "checkpoint-6"
    (group,) = json.loads((checkpoint / "trainer_state.json").read_text())["groups"]
    assert group["k"] == 6 and group["train_mode"] is False and group["lr"] == 2e-2

    resumed = lorakit_command(
        *common, "--steps", "12", "--save-every", "6", "--held-out", "0.25", "--resume", "--force"
    )
    assert resumed.returncode == 0, resumed.stderr
    again = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_check_and_plan_on_the_command_line(tmp_path: Path) -> None:
    make_llama().config.save_pretrained(tmp_path / "model")
    spec = tmp_path / "spec.lora"
    spec.write_text(f"use lorakit-schedulefree >= 0.1\n{SPEC} paged\n")
    checked = lorakit_command("check", spec)
    assert checked.returncode == 0, checked.stderr
    planned = lorakit_command("plan", spec, tmp_path / "model")
    assert planned.returncode == 0 and "optimizer: schedulefree" in planned.stdout, planned.stderr
