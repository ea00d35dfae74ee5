"""`orthogonal` and `spectral`: against PEFT and a full SVD, and in whole journeys."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorakit
from lorakit.hooks import LayerShape, Settings, StartContext
from lorakit.testing import Check, initializer_checks
from lorakit_orthogonal import Orthogonal, Spectral

CHECKS = [
    *initializer_checks(Orthogonal),
    *initializer_checks(Orthogonal, scale=0.5),
    *initializer_checks(Spectral),
    *initializer_checks(Spectral, iterations=0),
]


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_conformance(check: Check) -> None:
    check()


def started(initializer: Any, weight: Tensor, rank: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    lora_A, lora_B = torch.empty(rank, weight.shape[1]), torch.empty(weight.shape[0], rank)
    generator = torch.Generator().manual_seed(seed)
    shape = LayerShape("linear", weight.shape[1], weight.shape[0])
    settings = Settings(rank=rank, alpha=rank)
    initializer.initialize(
        lora_A,
        lora_B,
        StartContext("layer", shape, settings, lambda: weight, lambda: weight, lambda _A, _B: None, generator),
    )
    return lora_A, lora_B


def decaying(outputs: int, inputs: int) -> Tensor:
    """Return a weight whose singular values halve from one to the next."""
    generator = torch.Generator().manual_seed(3)
    size = min(outputs, inputs)
    left, _ = torch.linalg.qr(torch.randn(outputs, size, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(inputs, size, generator=generator))
    return left @ torch.diag(0.5 ** torch.arange(size)) @ right.T


@pytest.mark.parametrize("rank", [2, 3, 5, 8])
def test_orthogonal_matrices_are_both_there_and_their_product_is_not(rank: int) -> None:
    lora_A, lora_B = started(Orthogonal(), torch.empty(48, 64), rank)
    assert bool(lora_A.any(dim=0).all()) and bool(lora_B.any(dim=1).all())
    assert float((lora_B @ lora_A).norm() / (lora_B.norm() * lora_A.norm())) < 1e-6
    assert int(torch.linalg.matrix_rank(lora_A)) == (rank + 1) // 2
    assert int(torch.linalg.matrix_rank(lora_B)) == rank // 2


def test_orthogonal_at_rank_1_leaves_b_at_zero() -> None:
    lora_A, lora_B = started(Orthogonal(), torch.empty(48, 64), 1)
    assert bool(lora_A.all()) and not lora_B.any()


def test_orthogonal_is_distributed_as_in_peft() -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=16, target_modules=["0"], init_lora_weights="orthogonal")
    theirs: Any = get_peft_model(nn.Sequential(nn.Linear(512, 384, bias=False)), config).get_submodule(
        "base_model.model.0"
    )
    lora_A, lora_B = started(Orthogonal(), torch.empty(384, 512), 16)
    for ours, other in ((lora_A, theirs.lora_A["default"].weight), (lora_B, theirs.lora_B["default"].weight)):
        assert ours.shape == other.shape
        assert int(torch.linalg.matrix_rank(ours)) == int(torch.linalg.matrix_rank(other)) == 8
        # rank/2 · n independent normal values: 0.05 is beyond 4 standard errors of either
        assert float(ours.norm()) == pytest.approx(float(other.norm()), rel=0.05)


def test_rounding_to_bf16_leaves_little_of_the_product() -> None:
    lora_A, lora_B = (matrix.bfloat16().double() for matrix in started(Orthogonal(), torch.empty(384, 512), 16))
    # a relative error of 2⁻⁹ at most in each entry of both, which do not conspire
    assert float((lora_B @ lora_A).norm() / (lora_B.norm() * lora_A.norm())) < 2**-8


@pytest.mark.parametrize(("outputs", "inputs", "rank"), [(48, 64, 7), (64, 48, 8), (200, 100, 3), (12, 30, 12)])
def test_spectral_finds_the_vectors_of_a_full_svd(outputs: int, inputs: int, rank: int) -> None:
    weight = decaying(outputs, inputs)
    lora_A, lora_B = started(Spectral(), weight, rank)
    assert not lora_B.any()
    torch.testing.assert_close(lora_A @ lora_A.T, torch.eye(rank), rtol=0, atol=1e-5)
    # of the first ones, which single precision tells apart
    first = min(rank, 8)
    _, _, right = torch.linalg.svd(weight.double(), full_matrices=False)
    torch.testing.assert_close((lora_A[:first].double() @ right[:first].T).abs().diagonal().min().item(), 1.0)
    assert all(float(row[row.abs().argmax()]) > 0 for row in lora_A)


def test_spectral_explains_as_much_as_the_svd_of_a_flat_spectrum() -> None:
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(4))
    best = float(torch.linalg.svdvals(weight)[:8].square().sum())
    found = [float((weight @ started(Spectral(rounds), weight, 8)[0].T).square().sum()) for rounds in (0, 4, 30)]
    assert found[0] < found[1] < found[2] <= best * 1.00001
    assert found[1] > 0.9 * best and found[2] > 0.99 * best


@pytest.mark.parametrize("options", [{"scale": 0}, {"scale": float("inf")}])
def test_bad_scales_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="scale must be a positive number"):
        Orthogonal(**options)
    with pytest.raises(lorakit.SpecError, match="iterations must not be negative"):
        lorakit.parse("adapt q rank 2 init spectral(iterations=-1)")


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


@pytest.mark.parametrize("word", ["orthogonal", "spectral(iterations=2)"])
@pytest.mark.parametrize("quant", ["", " quant nf4"])
def test_apply_train_save_load_merge(word: str, quant: str, tmp_path: Path) -> None:
    tokens = make_tokens()
    text = f"adapt q_proj,v_proj rank 5 dtype fp32 init {word}{quant}"
    model = lorakit.apply(text, make_llama(), seed=3)
    base = lorakit.merge(lorakit.apply(text.replace(f" init {word}", ""), make_llama()))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, base(tokens).logits, rtol=1e-4, atol=1e-5)
    optimizer = lorakit.optimizer(model, lr=1e-2)
    losses = []
    for step in range(3):
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        if step == 0:
            moved = {
                name.rpartition(".")[2]
                for name, value in model.named_parameters()
                if value.grad is not None and value.grad.any()
            }
            assert moved == ({"lora_A", "lora_B"} if word == "orthogonal" else {"lora_B"})
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    with torch.no_grad():
        trained = model(tokens).logits
        again = lorakit.load(lorakit.save(model, tmp_path / "adapter"), make_llama())
        assert torch.equal(again(tokens).logits, trained)
        torch.testing.assert_close(lorakit.merge(again)(tokens).logits, trained, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("word", ["orthogonal", "spectral"])
def test_other_layers_start_unchanged_and_by_their_seed(word: str) -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(20, 8), nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 6, 3), nn.Flatten())

    text, inputs = f"adapt 0,2 rank 3 dtype fp32 init {word}", torch.arange(5)
    first, second, other = (lorakit.apply(text, net(), seed=seed) for seed in (1, 1, 2))
    with torch.no_grad():
        torch.testing.assert_close(first(inputs), net()(inputs), rtol=1e-4, atol=1e-5)
    for path in ("0", "2"):
        starts = [model.get_submodule(path).get_parameter("lora_A") for model in (first, second, other)]
        assert torch.equal(starts[0], starts[1])
        assert word == "spectral" or not torch.equal(starts[0], starts[2])


def test_check_and_plan_on_the_command_line(tmp_path: Path) -> None:
    make_llama().config.save_pretrained(tmp_path / "model")
    spec = tmp_path / "spec.lora"
    spec.write_text("use lorakit-orthogonal >= 0.1\nadapt q_proj rank 3 init orthogonal(scale=0.05)\n")
    checked = lorakit_command("check", spec)
    assert checked.returncode == 0, checked.stderr
    planned = lorakit_command("plan", spec, tmp_path / "model")
    assert planned.returncode == 0 and "init orthogonal(scale=0.05)" in planned.stdout, planned.stderr
    spec.write_text("adapt q_proj rank 3 init orthogonal(gain=2)\n")
    refused = lorakit_command("check", spec)
    assert refused.returncode == 2 and "`orthogonal` has no option `gain`" in refused.stdout
