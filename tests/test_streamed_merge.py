"""`lorakit merge` on a checkpoint on disk, a tensor at a time: against the merge in memory, and against PEFT's."""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import bitsandbytes
import pytest
import torch
from forked import Nursery
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import lorakit
from architectures import ARCHITECTURES, output_of
from helpers import bitsandbytes_weight, byte_tokenizer, make_gpt2, make_llama, randomize

SHARD = "50KB"
INPUTS = {"input_ids": torch.arange(3, 15)[None]}


@dataclass(frozen=True)
class Done:
    stdout: str
    stderr: str


def command(*arguments: object, name: str = "merge", code: int = 0) -> Done:
    """Run `lorakit merge`, or another command, in this process."""
    from lorakit.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    words = ["lorakit", name, *map(str, arguments)]
    with patch.object(sys, "argv", words), redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == code, out.getvalue() + err.getvalue()
    return Done(out.getvalue(), err.getvalue())


def adapted(base: Path, spec: str, folder: Path) -> Path:
    """Save an adapter for the model in `base`, everything in it moved from where it starts."""
    model = lorakit.apply(spec, reloaded(base))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(torch.randn(value.shape, generator=generator) * 0.1)
    return lorakit.save(model, folder)


def reloaded(folder: Path) -> nn.Module:
    """Load a folder as anyone would, by its own architecture."""
    import transformers

    name = AutoConfig.from_pretrained(folder).architectures[0]
    model: nn.Module = getattr(transformers, name).from_pretrained(folder, dtype="auto")
    return model.eval()


def stored(folder: Path) -> dict[str, Tensor]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def same_weights(folder: Path, expected: nn.Module) -> None:
    """Compare what a folder loads as with a model, bit for bit."""
    found, wanted = reloaded(folder).state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def in_memory(adapter: Path, base: Path) -> nn.Module:
    return lorakit.merge(lorakit.load(adapter, reloaded(base), quantize=False))


@pytest.mark.parametrize(
    ("architecture", "spec"),
    [
        ("llama", "adapt @linear rank 4 alpha 6\ntrain @norm"),
        ("gpt2", "adapt @linear rank 4"),
        ("qwen2", "adapt q_proj,v_proj rank 2 bias adapter\nadapt embed_tokens rank 2"),
        ("gpt_oss", "adapt @experts rank 2\nadapt q_proj rank 2"),
        ("llama4", "adapt @experts rank 2"),
        ("mixtral", "adapt @attention rank 2"),
        ("whisper", "adapt conv1,q_proj rank 2"),
        ("vit", "adapt @linear,:Conv2d rank 2"),
        ("t5", "adapt @attention rank 2"),
        ("bert", "adapt @attention rank 2"),
        ("llava", "adapt @attention rank 2"),
        ("deepseek_v3", "adapt @attention rank 2"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_merge_in_memory_bit_for_bit(architecture: str, spec: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base = tmp_path / "base"
    model: Any = ARCHITECTURES[architecture].build()
    model.to(dtype).save_pretrained(base, max_shard_size=SHARD)
    adapter = adapted(base, spec, tmp_path / "adapter")
    done = command(adapter, base, "-o", tmp_path / "merged")
    assert "through memory" not in done.stdout and "relative (Frobenius)" in done.stdout
    expected = in_memory(adapter, base)
    same_weights(tmp_path / "merged", expected)
    inputs = ARCHITECTURES[architecture].inputs()
    assert torch.equal(output_of(reloaded(tmp_path / "merged").float(), inputs), output_of(expected.float(), inputs))
    assert not torch.equal(output_of(expected, inputs), output_of(reloaded(base).float(), inputs))
    # in the same files under the same names
    assert stored(tmp_path / "merged").keys() == stored(base).keys()


def test_peft_merges_alike(tmp_path: Path) -> None:
    make_llama().save_pretrained(tmp_path / "base", max_shard_size=SHARD)
    model = get_peft_model(
        reloaded(tmp_path / "base"),
        LoraConfig(r=4, lora_alpha=12, use_rslora=True, target_modules="all-linear", modules_to_save=["norm"]),
    )
    randomize(model)
    model.save_pretrained(str(tmp_path / "adapter"))
    command(tmp_path / "adapter", tmp_path / "base", "-o", tmp_path / "merged")
    theirs = PeftModel.from_pretrained(reloaded(tmp_path / "base"), tmp_path / "adapter").merge_and_unload()
    mine = reloaded(tmp_path / "merged").state_dict()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(mine[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "tied", "dtype"),
    [
        ({"trainable_token_indices": [3, 100, 7]}, False, "fp32"),
        ({"trainable_token_indices": {"embed_tokens": [5, 6], "lm_head": [1]}}, False, "bf16"),
        ({"trainable_token_indices": [3, 100, 7]}, True, "bf16"),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, False, "bf16"),
        ({"modules_to_save": ["self_attn"], "target_modules": ["down_proj"]}, False, "fp32"),
        ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True, "fp32"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, False, "bf16"),
        ({"target_modules": ["lm_head"]}, True, "fp32"),
        ({"bias": "lora_only"}, False, "bf16"),
    ],
    ids=str,
)
def test_what_peft_saves_of_the_base_comes_along(
    config: dict[str, Any], tied: bool, dtype: str, tmp_path: Path
) -> None:
    """Rows of embeddings, whole modules, biases, and ends of another base than the one that is merged into."""
    base = tmp_path / "base"
    make_llama(tie_word_embeddings=tied, attention_bias=True).save_pretrained(base, max_shard_size=SHARD)
    changed = reloaded(base)
    if {"embed_tokens", "lm_head"} & set(config.get("target_modules", ())):
        with torch.no_grad():
            changed.get_input_embeddings().weight.add_(0.1)  # type: ignore[operator]
    theirs = get_peft_model(changed, LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"], **config}))
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in theirs.parameters():
            if value.requires_grad:
                value.add_(torch.randn(value.shape, generator=draw) * 0.1)
    theirs.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=True)
    right = theirs.eval()(**INPUTS).logits.detach()
    command(tmp_path / "adapter", base, "-o", tmp_path / "merged", "--dtype", dtype)
    merged = reloaded(tmp_path / "merged")
    in_fp32 = lorakit.merge(lorakit.load(tmp_path / "adapter", reloaded(base)))
    torch.testing.assert_close(output_of(in_fp32, INPUTS), right, rtol=1e-5, atol=1e-5)
    for name, value in in_fp32.state_dict().items():
        found = merged.state_dict()[name]
        # rounded once
        assert found.dtype == (torch.bfloat16 if dtype == "bf16" else torch.float32)
        assert torch.equal(found, value.to(found.dtype)), name


@pytest.mark.parametrize("architecture", ["llama", "t5", "bart"])
@pytest.mark.parametrize("spec", ["adapt @head rank 4", "adapt embed_tokens rank 4"])
def test_one_end_of_a_tie(architecture: str, spec: str, tmp_path: Path) -> None:
    build = (
        (lambda: make_llama(tie_word_embeddings=True)) if architecture == "llama" else ARCHITECTURES[architecture].build
    )
    base = tmp_path / "base"
    build().save_pretrained(base)
    adapter = adapted(base, spec, tmp_path / "adapter")
    done = command(adapter, base, "-o", tmp_path / "merged")
    assert "shared its weight and now has its own" in done.stdout
    merged = reloaded(tmp_path / "merged")
    inputs = ARCHITECTURES[architecture].inputs()
    expected = lorakit.load(adapter, reloaded(base), quantize=False)
    torch.testing.assert_close(output_of(merged, inputs), output_of(expected, inputs), rtol=0, atol=1e-5)
    assert len(stored(tmp_path / "merged")) > len(stored(base))


def test_training_a_tie_leaves_it_tied(tmp_path: Path) -> None:
    base = tmp_path / "base"
    make_llama(tie_word_embeddings=True).save_pretrained(base)
    adapter = adapted(base, "train lm_head\nadapt q_proj rank 2", tmp_path / "adapter")
    command(adapter, base, "-o", tmp_path / "merged")
    merged = reloaded(tmp_path / "merged")
    same_weights(tmp_path / "merged", in_memory(adapter, base))
    assert merged.get_input_embeddings().weight is merged.lm_head.weight  # type: ignore[operator, union-attr]
    assert not torch.equal(merged.lm_head.weight, reloaded(base).lm_head.weight)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("architecture", ["gpt2", "llama_classifier"])
def test_a_checkpoint_of_the_base_model_alone(architecture: str, tmp_path: Path) -> None:
    """Names without the prefix that the whole model gives them, as the first GPT-2 was published."""
    base = tmp_path / "base"
    model = ARCHITECTURES[architecture].build()
    model.save_pretrained(base)
    prefix = f"{model.base_model_prefix}."
    tensors = {name.removeprefix(prefix): value for name, value in load_file(base / "model.safetensors").items()}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    adapter = adapted(base, "adapt @attention rank 4", tmp_path / "adapter")
    command(adapter, base, "-o", tmp_path / "merged")
    same_weights(tmp_path / "merged", in_memory(adapter, base))
    assert stored(tmp_path / "merged").keys() == tensors.keys()


@pytest.mark.parametrize("spec", ["adapt @experts rank 2", "adapt q_proj rank 2\ntrain @experts"])
def test_experts_that_lie_one_by_one_go_through_memory(spec: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    ARCHITECTURES["mixtral"].build().save_pretrained(base, max_shard_size=SHARD)
    assert any(".experts.0.w1." in name for name in stored(base))
    adapter = adapted(base, spec, tmp_path / "adapter")
    done = command(adapter, base, "-o", tmp_path / "merged")
    assert "out of several stored tensors as it loads: the whole model goes through memory" in done.stdout
    same_weights(tmp_path / "merged", in_memory(adapter, base))


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_base_that_bitsandbytes_packed(kind: str, architecture: str, tmp_path: Path) -> None:
    from transformers import BitsAndBytesConfig

    plain, base = tmp_path / "plain", tmp_path / "base"
    model = make_llama() if architecture == "llama" else make_gpt2()
    model.to(torch.bfloat16).save_pretrained(plain)  # type: ignore[operator]
    settings = (
        BitsAndBytesConfig(load_in_8bit=True)
        if kind == "int8"
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=kind == "nf4")
    )
    AutoModelForCausalLM.from_pretrained(plain, quantization_config=settings).save_pretrained(base)
    adapter = adapted(plain, "adapt @attention rank 4", tmp_path / "adapter")
    done = command(adapter, base, "-o", tmp_path / "merged")
    assert "packed by bitsandbytes, dequantized to bfloat16" in done.stdout
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    # bitsandbytes' own dequantizing is the reference
    dequantized, held = reloaded(plain), dict(AutoModelForCausalLM.from_pretrained(base).named_modules())
    with torch.no_grad():
        for name, module in dequantized.named_modules():
            if isinstance(held[name], bitsandbytes.nn.Linear4bit):
                weight = bitsandbytes_weight(held[name].weight, held[name].weight.quant_state)
            elif isinstance(held[name], bitsandbytes.nn.Linear8bitLt):
                weight = bitsandbytes.functional.int8_vectorwise_dequant(held[name].weight, held[name].weight.SCB)
            else:
                continue
            module.weight.copy_(weight if isinstance(module, nn.Linear) else weight.T)
    assert not torch.equal(output_of(dequantized, INPUTS), output_of(reloaded(plain), INPUTS))
    same_weights(tmp_path / "merged", lorakit.merge(lorakit.load(adapter, dequantized, quantize=False)))


def test_a_chosen_dtype_is_rounded_to_once(tmp_path: Path) -> None:
    base = tmp_path / "base"
    make_llama().save_pretrained(base, max_shard_size=SHARD)
    adapter = adapted(base, "adapt q_proj rank 4 dtype fp32", tmp_path / "adapter")
    done = command(adapter, base, "-o", tmp_path / "merged", "--dtype", "bf16")
    assert "rounding to bfloat16" in done.stdout
    exact, found = in_memory(adapter, base).state_dict(), reloaded(tmp_path / "merged").state_dict()
    for name, value in exact.items():
        assert torch.equal(found[name], value.to(torch.bfloat16)), name
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    error = torch.cat(
        [(exact[name] - found[name].float()).flatten() for name in exact if name.endswith("q_proj.weight")]
    )
    assert f"at most {float(error.abs().max()):.3g} a weight" in done.stdout


def test_what_transformers_keeps_in_float32_stays_there(tmp_path: Path) -> None:
    base, bias = tmp_path / "base", "model.layers.1.mlp.gate.e_score_correction_bias"
    ARCHITECTURES["deepseek_v3"].build().save_pretrained(base)
    adapter = adapted(base, "adapt o_proj rank 2", tmp_path / "adapter")
    command(adapter, base, "-o", tmp_path / "merged", "--dtype", "bf16")
    dtypes = {name: value.dtype for name, value in stored(tmp_path / "merged").items()}
    assert dtypes.pop(bias) == torch.float32 and set(dtypes.values()) == {torch.bfloat16}


def test_a_trained_head_that_the_base_lacks(tmp_path: Path) -> None:
    base = tmp_path / "base"
    ARCHITECTURES["llama_classifier"].build().save_pretrained(base)
    tensors = load_file(base / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    adapter = adapted(base, "adapt q_proj rank 2\ntrain score", tmp_path / "adapter")
    command(adapter, base, "-o", tmp_path / "merged")
    same_weights(tmp_path / "merged", in_memory(adapter, base))


def test_a_method_that_cannot_be_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorakit.layers.lora_layer import LoRALayer

    base = tmp_path / "base"
    make_llama().save_pretrained(base)
    adapter = adapted(base, "adapt q_proj rank 2", tmp_path / "adapter")
    monkeypatch.delattr(LoRALayer, "exact_weight")
    done = command(adapter, base, "-o", tmp_path / "merged", code=2)
    assert "method `lora` on `model.layers.0.self_attn.q_proj` cannot be merged" in done.stderr


def test_a_plain_model_in_a_chosen_dtype(tmp_path: Path) -> None:
    net = tmp_path / "net.py"
    net.write_text(
        "import torch\ndef net():\n    torch.manual_seed(0)\n    return torch.nn.Sequential(torch.nn.Linear(8, 8))\n"
    )
    torch.manual_seed(0)
    model = lorakit.apply("adapt 0 rank 2", nn.Sequential(nn.Linear(8, 8)))
    randomize(model)
    lorakit.save(model, tmp_path / "adapter")
    command(tmp_path / "adapter", f"{net}:net", "-o", tmp_path / "merged", "--dtype", "fp16")
    assert stored(tmp_path / "merged")["0.weight"].dtype == torch.float16


def test_values_that_are_not_finite_leave_nothing(tmp_path: Path) -> None:
    base = tmp_path / "base"
    make_llama().to(torch.float16).save_pretrained(base, max_shard_size=SHARD)
    model = lorakit.apply("adapt q_proj rank 4 alpha 100000000", reloaded(base))
    randomize(model)
    adapter = lorakit.save(model, tmp_path / "adapter")
    done = command(adapter, base, "-o", tmp_path / "merged", code=2)
    assert "`model.layers.0.self_attn.q_proj` gives values that are not finite" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["adapter", "base"]


SMALL_FILES_ONLY = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
"""


def test_a_full_disk_leaves_what_was_there(nursery: Nursery, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "merged"
    make_llama().save_pretrained(base)
    adapter = adapted(base, "adapt q_proj rank 4", tmp_path / "adapter")
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    child = nursery.command("merge", adapter, base, "-o", out, "--force", before=SMALL_FILES_ONLY)
    assert child.wait() == 1 and "untouched" in child.err and "Traceback" not in child.err, child.err
    assert sorted(os.listdir(tmp_path)) == ["adapter", "base", "merged"] and os.listdir(out) == ["mine.txt"]


def test_what_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "base"
    make_llama().save_pretrained(base, max_shard_size=SHARD)
    adapter = adapted(base, "adapt q_proj rank 4", tmp_path / "adapter")
    make_llama(hidden_size=32).save_pretrained(tmp_path / "small")
    done = command(adapter, tmp_path / "small", "-o", tmp_path / "out", code=2)
    assert "is for another model: `model.layers.0.self_attn.q_proj` is 64 × 64 there" in done.stderr
    index = json.loads((base / "model.safetensors.index.json").read_text())
    file = base / index["weight_map"]["model.layers.0.self_attn.q_proj.weight"]
    content = file.read_bytes()
    file.write_bytes(content[:200])
    assert f"{file} is damaged" in command(adapter, base, "-o", tmp_path / "out", code=2).stderr
    file.unlink()
    assert f"{file.name}, which is not there" in command(adapter, base, "-o", tmp_path / "out", code=2).stderr
    file.write_bytes(content)
    del index["weight_map"]["model.layers.0.self_attn.q_proj.weight"]
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    done = command(adapter, base, "-o", tmp_path / "out", code=2)
    assert "for which the base holds no `model.layers.0.self_attn.q_proj.weight`" in done.stderr
    (base / "model.safetensors.index.json").write_text("[]")
    assert "is no index of weights" in command(adapter, base, "-o", tmp_path / "out", code=2).stderr
    assert not (tmp_path / "out").exists()


def test_many_shards_and_what_lies_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorakit.artifacts import merge_layout

    base, out = tmp_path / "base", tmp_path / "merged"
    make_llama().save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    adapter = adapted(base, "adapt q_proj rank 4", tmp_path / "adapter")
    monkeypatch.setattr(merge_layout, "SHARD_BYTES", 40_000)
    command(adapter, base, "-o", out)
    same_weights(out, in_memory(adapter, base))
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) > 3 and not (out / "model.safetensors").exists()
    assert all(file.stat().st_size < 50_000 for file in shards)
    assert {"generation_config.json", "tokenizer.json", "chat_template.jinja"} <= set(os.listdir(out))


def test_a_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model by its id, in a cache as huggingface_hub lays it out."""
    place = tmp_path / "hub" / "models--someone--tiny"
    snapshot = place / "snapshots" / ("0" * 40)
    make_llama().save_pretrained(snapshot, max_shard_size=SHARD)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    adapter = adapted(snapshot, "adapt q_proj rank 4", tmp_path / "adapter")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    done = command(adapter, "someone/tiny", "-o", tmp_path / "merged")
    assert "through memory" not in done.stdout
    same_weights(tmp_path / "merged", in_memory(adapter, snapshot))
    assert "cannot" in command(adapter, "someone/else", "-o", tmp_path / "out", code=2).stderr
