"""Adapters and specs from releases of transformers in which a model's modules lay elsewhere or one by one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lorakit
from helpers import randomize
from lorakit.artifacts.inspection import inspect_adapter

WEIGHTS = "adapter_model.safetensors"
TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
TOKENS = torch.randint(0, 59, (2, 9), generator=torch.Generator().manual_seed(3))


def llava() -> nn.Module:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_index=60)
    return LlavaForConditionalGeneration(config).eval()


def qwen2_vl() -> nn.Module:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    torch.manual_seed(0)
    vision = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "patch_size": 4, "mlp_ratio": 2}
    text = TEXT | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision)).eval()


# by model: how its language model and its head lie now, and how they lay
RENAMED: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[str, str], ...]]] = {
    "llava": (llava, (("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head."))),
    "qwen2_vl": (qwen2_vl, (("model.language_model.", "model."),)),
}


def former(name: str, renamings: tuple[tuple[str, str], ...]) -> str:
    for now, before in renamings:
        if name.startswith(now):
            return before + name.removeprefix(now)
    return name


@pytest.mark.parametrize("kind", RENAMED)
def test_adapters_of_modules_that_lay_elsewhere(kind: str, tmp_path: Path) -> None:
    build, renamings = RENAMED[kind]
    config = LoraConfig(
        r=2,
        lora_alpha=4,
        target_modules=r".*language_model.*\.(q_proj|down_proj)|lm_head",
        alpha_pattern={former("model.language_model.layers.1.mlp.down_proj", renamings): 7},
        modules_to_save=["norm"],
    )
    theirs: Any = get_peft_model(build(), config)
    randomize(theirs)
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "modules_to_save" in name:
                value += 0.1
    for name, module in theirs.named_modules():
        if name.endswith("language_model.layers.1.mlp.down_proj"):
            # this is what it trained by, in the release where it was called as the pattern has it
            module.scaling["default"] = 3.5
    right = theirs.eval()(input_ids=TOKENS).logits.detach()
    theirs.save_pretrained(str(tmp_path / "peft"))
    file, prefix = tmp_path / "peft" / WEIGHTS, "base_model.model."
    now = load_file(file)
    old = {prefix + former(name.removeprefix(prefix), renamings): value for name, value in now.items()}
    assert old.keys() != now.keys()
    save_file(old, file)
    ours = lorakit.load(tmp_path / "peft", build())
    assert float((ours(input_ids=TOKENS).logits - right).abs().max()) <= 1e-5
    again = lorakit.save(ours, tmp_path / "ours")
    peft = PeftModel.from_pretrained(build(), str(again)).eval()
    assert float((peft(input_ids=TOKENS).logits - right).detach().abs().max()) <= 1e-5


@pytest.mark.parametrize("kind", RENAMED)
def test_a_spec_may_call_modules_as_they_were_called(kind: str) -> None:
    build, renamings = RENAMED[kind]
    model = build()
    new, old = "model.language_model.layers[-1].self_attn.q_proj", "model.language_model.layers[-1].self_attn.q_proj"
    old = former(old, renamings)
    found = [[entry.path for entry in lorakit.plan(f"adapt {target} rank 2", model).entries] for target in (new, old)]
    assert found == [["model.language_model.layers.1.self_attn.q_proj"]] * 2
    with pytest.raises(lorakit.PlanError, match="matches no module"):
        lorakit.plan("adapt language_modell.model.layers[0].q_proj rank 2", model)


def mixture(kind: str) -> Any:
    torch.manual_seed(0)
    classes = {
        "mixtral": ("Mixtral", {"num_local_experts": 4, "intermediate_size": 24}),
        "qwen2_moe": ("Qwen2Moe", {"num_experts": 4, "moe_intermediate_size": 24}),
        "qwen3_moe": ("Qwen3Moe", {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8}),
        "olmoe": ("Olmoe", {"num_experts": 4, "intermediate_size": 24}),
        "deepseek_v3": (
            "DeepseekV3",
            {"n_routed_experts": 4, "moe_intermediate_size": 24, "first_k_dense_replace": 1, "n_group": 1,
             "topk_group": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8,
             "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4},
        ),
        "glm4_moe": (
            "Glm4Moe",
            {"n_routed_experts": 4, "moe_intermediate_size": 24, "first_k_dense_replace": 1, "n_group": 1,
             "topk_group": 1, "head_dim": 8},
        ),
    }  # fmt: skip
    name, more = classes[kind]
    config = getattr(transformers, f"{name}Config")(
        **TEXT | {"num_experts_per_tok": 2, "shared_expert_intermediate_size": 20} | more
    )
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3", "glm4_moe")


def one_by_one(
    kind: str, exact: Any, scaling: Callable[[str, int], float], ranks: dict[str, int], left: Callable[[str], bool]
) -> dict[str, Tensor]:
    """Return an adapter of the experts and the router of the last layer, added to the weights of `exact` as well."""
    draw = torch.Generator().manual_seed(7)
    gate, up, down = ("w1", "w3", "w2") if kind == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    block = "block_sparse_moe" if kind == "mixtral" else "mlp"
    layer = exact.model.layers[1].mlp
    experts, tensors = layer.experts, {}

    def change(path: str, rank: int, outputs: int, inputs: int) -> Tensor:
        a, b = (0.3 * torch.randn(shape, generator=draw) for shape in ((rank, inputs), (outputs, rank)))
        if left(path):
            return torch.zeros(outputs, inputs)
        full = f"base_model.model.model.layers.1.{block}.{path}"
        tensors.update({f"{full}.lora_A.weight": a, f"{full}.lora_B.weight": b})
        return scaling(path, rank) * b @ a

    with torch.no_grad():
        for number in range(4):
            for name in (gate, up, down):
                rows, columns = (32, 24) if name == down else (24, 32)
                delta = change(f"experts.{number}.{name}", ranks[name[0]], rows, columns)
                if name == down:
                    experts.down_proj[number] += delta
                else:
                    experts.gate_up_proj[number][slice(0, 24) if name == gate else slice(24, None)] += delta
        layer.gate.weight += change("gate", 2, 4, 32)
    return tensors


def written(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS)
    names = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in tensors})
    plain = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": names}
    (folder / "adapter_config.json").write_text(json.dumps(plain | config))
    return folder


@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_that_lay_one_by_one(kind: str, tmp_path: Path) -> None:
    exact, ranks = mixture(kind), dict.fromkeys("wgud", 2)
    tensors = one_by_one(kind, exact, lambda path, rank: 2.0, ranks, lambda path: False)
    folder = written(tmp_path / "old", tensors)
    ours = lorakit.load(folder, mixture(kind))
    right = exact(TOKENS).logits
    assert float((ours(TOKENS).logits - right).abs().max()) <= 1e-5
    assert float((mixture(kind)(TOKENS).logits - right).abs().max()) > 1e-3
    again = lorakit.save(ours, tmp_path / "new")
    assert len(inspect_adapter(folder).adapters) == 13
    # transformers before 5.14 reads a buffer off the router, which PEFT's wrapper does not hand on
    if Version(transformers.__version__) >= Version("5.14") or kind not in ("deepseek_v3", "glm4_moe"):
        theirs = PeftModel.from_pretrained(mixture(kind), str(again)).eval()
        assert float((theirs(TOKENS).logits - right).abs().max()) <= 1e-5


@pytest.mark.parametrize(
    ("left", "config"),
    [
        (r"experts\.\d+\.up_proj", {}),
        (r"experts\.[02]\..*|gate", {}),
        (r"gate", {"alpha_pattern": {"experts.1.up_proj": 9, "down_proj": 3}}),
        (r"gate", {"use_rslora": True, "alpha_pattern": {r"experts\.[13]\.gate_proj": 1}}),
    ],
    ids=["one projection", "some experts", "alphas", "rslora"],
)
def test_some_of_the_experts_scaled_each_as_it_was(left: str, config: dict[str, Any], tmp_path: Path) -> None:
    """No table and no library says what these make together: it is what each made alone."""

    def scaling(path: str, rank: int) -> float:
        patterns: dict[str, int] = config.get("alpha_pattern", {})
        alpha = next((one for pattern, one in patterns.items() if re.search(f"(^|\\.){pattern}$", path)), 4)
        return alpha / (rank**0.5 if config.get("use_rslora") else rank)

    exact = mixture("qwen3_moe")
    ranks = {"g": 2, "u": 1, "d": 3}
    tensors = one_by_one("qwen3_moe", exact, scaling, ranks, lambda path: re.fullmatch(left, path) is not None)
    ours = lorakit.load(written(tmp_path / "old", tensors, **config), mixture("qwen3_moe"))
    assert float((ours(TOKENS).logits - exact(TOKENS).logits).abs().max()) <= 1e-5


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda path, tensors: tensors.pop(f"{path}.1.up_proj.lora_B.weight"), "lora_B.weight` is missing"),
        (lambda path, tensors: tensors.update({f"{path}.1.up_proj.lora_B.weight": torch.ones(24, 5)}), "ranks 2 and 5"),
        (lambda path, tensors: tensors.update({f"{path}.1.up_proj.lora_B.weight": torch.ones(())}), "where a matrix"),
        (lambda path, tensors: tensors.update({f"{path}.{10**9}.up_proj.{end}": torch.ones(shape) for end, shape in
            (("lora_A.weight", (2, 32)), ("lora_B.weight", (24, 2)))}), "has the number 1000000000"),
        (lambda path, tensors: tensors.update({f"{path}.4.up_proj.{end}": torch.ones(shape) for end, shape in
            (("lora_A.weight", (2, 32)), ("lora_B.weight", (24, 2)))}), "they make"),
        (lambda path, tensors: tensors.update({f"{path}.1.up_proj.weight": torch.ones(24, 32)}), "as a part of"),
    ],
)  # fmt: skip
def test_experts_that_do_not_come_together(
    change: Callable[[str, dict[str, Tensor]], object], complaint: str, tmp_path: Path
) -> None:
    tensors = one_by_one("qwen3_moe", mixture("qwen3_moe"), lambda *_: 1.0, dict.fromkeys("gud", 2), lambda path: False)
    change("base_model.model.model.layers.1.mlp.experts", tensors)
    with pytest.raises(lorakit.AdapterError, match=complaint):
        lorakit.load(written(tmp_path / "old", tensors), mixture("qwen3_moe"))
