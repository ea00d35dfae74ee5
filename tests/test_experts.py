"""Stacks of experts held as one parameter: adapted by their path, with the model's own orientation, and with PEFT."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import lorakit
from helpers import randomize

SETTINGS: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**SETTINGS, intermediate_size=24, num_local_experts=4))


def qwen3_moe(**changes: Any) -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    more: dict[str, Any] = {
        "intermediate_size": 24,
        "moe_intermediate_size": 20,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 8,
    }
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SETTINGS, **more, **changes))


def gpt_oss() -> Any:
    from transformers import GptOssConfig, GptOssForCausalLM

    more: dict[str, Any] = {
        "intermediate_size": 24,
        "num_local_experts": 4,
        "head_dim": 8,
        "layer_types": ["full_attention"] * 2,
    }
    return GptOssForCausalLM(GptOssConfig(**SETTINGS, **more))


def llama4() -> Any:
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    more: dict[str, Any] = {"intermediate_size": 24, "intermediate_size_mlp": 24, "num_local_experts": 4, "head_dim": 8}
    more |= {"interleave_moe_layer_step": 1, "pad_token_id": 0}
    return Llama4ForCausalLM(Llama4TextConfig(**SETTINGS, **more))


MODELS = {"mixtral": mixtral, "qwen3_moe": qwen3_moe, "gpt_oss": gpt_oss, "llama4": llama4}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(1))


def stacks(model: nn.Module) -> list[str]:
    return [entry.path for entry in lorakit.plan("adapt @experts rank 2", model).entries]


def test_experts_are_targets_by_their_path(model: nn.Module) -> None:
    paths = stacks(model)
    assert len(paths) == 4 and all(path.endswith(("experts.gate_up_proj", "experts.down_proj")) for path in paths)
    down = lorakit.plan("adapt experts.down_proj rank 2", model)
    assert [entry.path for entry in down.entries] == paths[1::2]
    # the width of the model comes in, or goes out, whichever way the weight lies
    up, last = (lorakit.plan("adapt @experts rank 2", model).entries[index].shape for index in (0, 1))
    assert up is not None and last is not None
    assert (up.in_features, last.out_features, up.stack) == (32, 32, 4)


def test_a_fresh_adapter_changes_no_bit_and_a_trained_one_learns(model: nn.Module, tokens: torch.Tensor) -> None:
    before = model(tokens).logits
    base = {name: value.detach().clone() for name, value in model.named_parameters()}
    lorakit.apply("adapt @experts rank 2", model)
    assert torch.equal(model(tokens).logits, before)
    model.train()
    optimizer = lorakit.optimizer(model, lr=5e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    for name, value in model.named_parameters():
        if value.requires_grad:
            assert value.grad is not None and value.grad.any(), name
        else:
            original = name.replace("parametrizations.", "").removesuffix(".original")
            assert torch.equal(value, base[original]), name


def test_the_change_is_one_product_an_expert(model: nn.Module, tokens: torch.Tensor) -> None:
    plain = copy.deepcopy(model)
    lorakit.apply("adapt @experts rank 2 alpha 6", model)
    randomize(model)
    with torch.no_grad():
        for name, adapter in model.named_modules():
            if not name.endswith("_proj.0"):
                continue
            path = name.replace("parametrizations.", "").removesuffix(".0")
            a, b = adapter.lora_A.view(4, 2, -1), adapter.lora_B.view(-1, 2, 4)
            for expert in range(4):
                product = 3.0 * b[:, :, expert] @ a[expert]
                change = product.T if adapter.transposed else product
                plain.get_parameter(path)[expert].add_(change)
    torch.testing.assert_close(model(tokens).logits, plain(tokens).logits, rtol=1e-5, atol=1e-5)
    merged = lorakit.merge(model)
    torch.testing.assert_close(merged(tokens).logits, plain(tokens).logits, rtol=1e-5, atol=1e-5)
    assert set(merged.state_dict()) == set(plain.state_dict())


@pytest.mark.parametrize("targets", ["@experts", "experts.down_proj", "@experts, q_proj"])
def test_both_ways_with_peft(model: nn.Module, targets: str, tokens: torch.Tensor, tmp_path: Path) -> None:
    fresh = copy.deepcopy(model)
    ours = lorakit.apply(f"adapt {targets} rank 2 alpha 6", model)
    randomize(ours)
    lorakit.save(ours, tmp_path / "ours")
    theirs = PeftModel.from_pretrained(copy.deepcopy(fresh), str(tmp_path / "ours")).eval()
    assert float((theirs(tokens).logits - ours(tokens).logits).detach().abs().max()) <= 1e-5
    again = lorakit.load(tmp_path / "ours", copy.deepcopy(fresh))
    assert torch.equal(again(tokens).logits, ours(tokens).logits)
    (tmp_path / "ours" / "plan.json").unlink()
    foreign = lorakit.load(tmp_path / "ours", copy.deepcopy(fresh))
    assert float((foreign(tokens).logits - ours(tokens).logits).detach().abs().max()) <= 1e-5


def test_stacks_that_peft_saved(model: nn.Module, tokens: torch.Tensor, tmp_path: Path) -> None:
    fresh = copy.deepcopy(model)
    names = sorted({".".join(path.split(".")[-2:]) for path in stacks(model)})
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], target_parameters=names)
    theirs = get_peft_model(model, config).eval()
    randomize(theirs)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    ours = lorakit.load(tmp_path / "theirs", fresh)
    assert float((ours(tokens).logits - theirs(tokens).logits).detach().abs().max()) <= 1e-5


def test_experts_left_outside_are_said(model: nn.Module) -> None:
    notes = " ".join(lorakit.plan("adapt @linear rank 2", model).notes)
    assert "lie in expert stacks that no rule adapts" in notes
    assert "expert stacks" not in " ".join(lorakit.plan("adapt @linear, @experts rank 2", model).notes)


def test_experts_train_in_full_and_refuse_dropout(model: nn.Module, tokens: torch.Tensor) -> None:
    with pytest.raises(lorakit.PlanError, match="dropout cannot act"):
        lorakit.plan("adapt @experts rank 2 dropout 0.1", model)
    lorakit.apply("train experts.down_proj", model)
    learned = [name for name, value in model.named_parameters() if value.requires_grad]
    assert len(learned) == 2 and all(name.endswith("experts.down_proj") for name in learned)
    assert lorakit.optimizer(model).param_groups[0]["params"]


@pytest.mark.parametrize("targets", ["mlp.gate.weight", "gate.weight, @experts", "gate.weight, q_proj"])
@pytest.mark.parametrize("build", [mixtral, qwen3_moe])
def test_routers_both_ways_with_peft(
    build: Callable[[], nn.Module], targets: str, tokens: torch.Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    fresh = build().eval()
    ours = lorakit.apply(f"adapt {targets} rank 2 alpha 6", copy.deepcopy(fresh))
    randomize(ours)
    said = ours(tokens).logits
    assert float((fresh(tokens).logits - said).abs().max()) > 1e-3
    lorakit.save(ours, tmp_path / "ours")
    theirs = PeftModel.from_pretrained(copy.deepcopy(fresh), str(tmp_path / "ours")).eval()
    assert float((theirs(tokens).logits - said).detach().abs().max()) <= 1e-5
    theirs.save_pretrained(str(tmp_path / "theirs"))
    again = lorakit.load(tmp_path / "theirs", copy.deepcopy(fresh))
    assert float((again(tokens).logits - said).detach().abs().max()) <= 1e-5
    merged = lorakit.merge(again)
    assert float((merged(tokens).logits - said).detach().abs().max()) <= 1e-5
    assert merged.state_dict().keys() == fresh.state_dict().keys()


@pytest.mark.parametrize("build", [mixtral, qwen3_moe])
def test_all_that_peft_takes_for_linear(build: Callable[[], nn.Module], tokens: torch.Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    fresh = build().eval()
    theirs = get_peft_model(copy.deepcopy(fresh), LoraConfig(r=2, lora_alpha=6, target_modules="all-linear")).eval()
    randomize(theirs)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    ours = lorakit.load(tmp_path / "theirs", fresh)
    assert float((ours(tokens).logits - theirs(tokens).logits).detach().abs().max()) <= 1e-5


def test_only_an_outright_name_reaches_a_router() -> None:
    model = mixtral()
    reached = (
        "**",
        "model.layers.*.mlp.**",
        "layers[0..1]",
        "/.*gate.*/",
        "*.weight",
        "@experts",
        "@mlp",
        ":Parameter",
    )
    for target in reached:
        plan = lorakit.plan(f"adapt {target} rank 2 optional\ntrain norm", model)
        assert not [entry.path for entry in plan.entries if entry.path.endswith("gate.weight")], target
    with pytest.raises(lorakit.PlanError, match=r"its matrix alone is a target: `mlp\.gate\.weight`"):
        lorakit.plan("adapt mlp.gate rank 2", model)
    with pytest.raises(lorakit.PlanError, match="dropout cannot act"):
        lorakit.plan("adapt gate.weight rank 2 dropout 0.1", model)
    for text in ("train mlp.gate", "train gate.weight"):
        trained = lorakit.apply(text, mixtral())
        names = [name for name, value in trained.named_parameters() if value.requires_grad]
        assert names == [f"model.layers.{layer}.mlp.gate.weight" for layer in (0, 1)]
        assert lorakit.plan(text, model).trainable == 2 * 4 * 32


def test_layers_that_peft_takes_for_experts(tokens: torch.Tensor, tmp_path: Path) -> None:
    """A dense layer beside experts, with ranks, alphas and a dropout of its own."""
    torch.manual_seed(0)
    fresh = qwen3_moe(mlp_only_layers=[0]).eval()
    spec = "adapt @linear rank 2 alpha 6\nadapt gate_proj,up_proj rank 3 alpha 2 dropout 0.1"
    ours = lorakit.apply(spec, copy.deepcopy(fresh)).eval()
    randomize(ours)
    said = ours(tokens).logits
    lorakit.save(ours, tmp_path / "ours")
    theirs = PeftModel.from_pretrained(copy.deepcopy(fresh), str(tmp_path / "ours")).eval()
    assert float((theirs(tokens).logits - said).detach().abs().max()) <= 1e-5
    theirs.save_pretrained(str(tmp_path / "theirs"))
    again = lorakit.load(tmp_path / "theirs", copy.deepcopy(fresh))
    assert float((again(tokens).logits - said).detach().abs().max()) <= 1e-5
