"""`lorakit export`: what a GGUF adapter holds, read back with gguf, changes the converted weights as a merge does."""

from __future__ import annotations

import builtins
import os
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_streamed_merge import adapted, command, in_memory, reloaded
from torch import Tensor, nn

import lorakit
from architectures import ARCHITECTURES
from helpers import make_gpt2, make_llama
from lorakit.artifacts.gguf_export import export_adapter
from lorakit.plugins import default_plugins


def export(adapter: Path, model: nn.Module, target: Path, dtype: str = "f32") -> Any:
    return export_adapter(adapter, model, target, default_plugins(), dtype=dtype)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the fields and the tensors of a GGUF file, the tensors in float32 as (…, rows, columns)."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        tensors[tensor.name] = torch.from_numpy(values.reshape(tuple(int(size) for size in reversed(tensor.shape))))
    return fields, tensors


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Move row i of the first half of each head to 2i, and row i of the second half to 2i + 1, one by one."""
    size = weight.shape[0] // heads
    result = torch.empty_like(weight)
    for head in range(heads):
        for i in range(size // 2):
            result[head * size + 2 * i] = weight[head * size + i]
            result[head * size + 2 * i + 1] = weight[head * size + size // 2 + i]
    return result


def converted(model: nn.Module, kind: str) -> dict[str, Tensor]:
    """Return the matrices of a model under llama.cpp's names, laid out as its converter lays them."""
    names = {
        "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
        "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
        "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
        "experts.down_proj": "ffn_down_exps", "qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up",
    }  # fmt: skip
    found: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        path = name.removesuffix(".weight")
        layer = next((part for part in path.split(".") if part.isdigit()), None)
        if path == "lm_head":
            found["output.weight"] = value
        elif path.endswith("embed_tokens"):
            found["token_embd.weight"] = value
        elif layer is not None and path.endswith("experts.gate_up_proj"):
            found[f"blk.{layer}.ffn_gate_exps.weight"], found[f"blk.{layer}.ffn_up_exps.weight"] = value.chunk(2, dim=1)
        elif layer is not None and (
            own := next((names[end] for end in sorted(names, key=len, reverse=True) if path.endswith(end)), None)
        ):
            if kind == "llama" and own in ("attn_q", "attn_k"):
                value = interleaved(value, 4 if own == "attn_q" else 2)
            found[f"blk.{layer}.{own}.weight"] = value.T if kind == "gpt2" else value
    return found


def check(path: Path, base: nn.Module, merged: nn.Module, kind: str, tolerance: float = 1e-5) -> dict[str, Any]:
    """Compare W + alpha / rank · B·A of every tensor with the merged weight, both converted; the rest must be equal."""
    fields, tensors = read(path)
    before, after = converted(base, kind), converted(merged, kind)
    changed = {name.rpartition(".")[0] for name in tensors}
    assert changed and {f"{name}.lora_{end}" for name in changed for end in "ab"} == tensors.keys()
    for name, weight in before.items():
        if name not in changed:
            assert torch.equal(weight, after[name]), name
            continue
        lora_a, lora_b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        # llama.cpp reads the rank off lora_b, and checks these shapes
        scale = fields["adapter.lora.alpha"] / lora_b.shape[-1]
        if name == "token_embd.weight":
            assert (lora_a.shape[0], lora_b.shape[0]) == tuple(weight.shape)
            change = scale * lora_a @ lora_b.T
        else:
            assert (lora_b.shape[-2], lora_a.shape[-1]) == tuple(weight.shape[-2:])
            change = scale * lora_b @ lora_a
        torch.testing.assert_close(weight + change, after[name], rtol=0, atol=tolerance)
    assert not changed - before.keys()
    assert fields["general.type"] == "adapter" and fields["adapter.type"] == "lora"
    return fields


@pytest.mark.parametrize(
    ("kind", "architecture", "spec"),
    [
        ("llama", "llama", "adapt @linear rank 4 alpha 6\nadapt lm_head,embed_tokens rank 2"),
        ("llama", "llama", "adapt @attention rank 4 alpha 6\nadapt @mlp rank 8 scaling rslora alpha 3"),
        ("llama", "mistral", "adapt q_proj,k_proj rank 4"),
        ("llama", "mixtral", "adapt @experts rank 2 alpha 5\nadapt q_proj rank 4"),
        ("plain", "qwen2", "adapt @attention rank 2"),
        ("plain", "gemma2", "adapt @attention,@mlp rank 2"),
        ("plain", "gemma3", "adapt @attention rank 2"),
        ("plain", "phi3", "adapt @attention,@mlp rank 2"),
        ("plain", "olmo2", "adapt @attention rank 2"),
        ("plain", "cohere", "adapt @attention rank 2"),
        ("llama", "granite", "adapt @attention rank 2"),
        ("plain", "qwen3_moe", "adapt @experts,@attention rank 2"),
        ("gpt2", "gpt2", "adapt @attention,@mlp rank 4 alpha 2"),
    ],
)
def test_the_merged_weights(kind: str, architecture: str, spec: str, tmp_path: Path) -> None:
    base, target = tmp_path / "base", tmp_path / "adapter.gguf"
    ARCHITECTURES[architecture].build().save_pretrained(base)
    adapter = adapted(base, spec, tmp_path / "adapter")
    done = export(adapter, reloaded(base), target)
    fields = check(target, reloaded(base), in_memory(adapter, base), kind)
    assert fields["general.architecture"] == done.architecture


def test_an_adapter_of_peft(tmp_path: Path) -> None:
    make_llama().save_pretrained(tmp_path / "base")
    model = get_peft_model(
        reloaded(tmp_path / "base"),
        LoraConfig(r=4, lora_alpha=12, rank_pattern={"k_proj": 2}, target_modules=["q_proj", "k_proj"]),
    )
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(2)))
    model.save_pretrained(str(tmp_path / "adapter"))
    export(tmp_path / "adapter", reloaded(tmp_path / "base"), tmp_path / "adapter.gguf")
    fields = check(tmp_path / "adapter.gguf", reloaded(tmp_path / "base"), model.merge_and_unload(), "llama")
    assert fields["adapter.lora.alpha"] == 12.0


def test_the_rows_are_those_that_transformers_reads(tmp_path: Path) -> None:
    """transformers reads GGUF models too and puts the rows back: an implementation that is not ours."""
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    from lorakit.artifacts.gguf_names import permuted_rows

    weight = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    for heads in (2, 4):
        there = permuted_rows(weight, heads)
        back = LlamaTensorProcessor()._reverse_permute_weights(there.numpy(), heads, heads)
        assert torch.equal(torch.from_numpy(back), weight) and torch.equal(there, interleaved(weight, heads))


@pytest.mark.parametrize(("dtype", "tolerance"), [("f16", 2e-3), ("bf16", 2e-2)])
def test_narrower_dtypes(dtype: str, tolerance: float, tmp_path: Path) -> None:
    base, target = tmp_path / "base", tmp_path / "adapter.gguf"
    make_llama().save_pretrained(base)
    adapter = adapted(base, "adapt q_proj rank 4", tmp_path / "adapter")
    export(adapter, reloaded(base), target, dtype)
    check(target, reloaded(base), in_memory(adapter, base), "llama", tolerance)
    assert {tensor.tensor_type.name for tensor in gguf.GGUFReader(target).tensors} == {dtype.upper()}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("adapt q_proj rank 2\ntrain @norm", ["trained in full", "`model.layers.0.input_layernorm`", "and 2 more"]),
        ("adapt q_proj rank 2 bias adapter", ["trained biases", "`model.layers.0.self_attn.q_proj`"]),
        ("adapt @head rank 2", ["shares its weight", "model.embed_tokens.weight", "lorakit merge"]),
    ],
)
def test_what_a_gguf_adapter_cannot_hold(spec: str, words: list[str], tmp_path: Path) -> None:
    model = make_llama(tie_word_embeddings=True, attention_bias=True)
    adapter = lorakit.save(lorakit.apply(spec, model), tmp_path / "adapter")
    with pytest.raises(lorakit.AdapterError) as caught:
        export(adapter, make_llama(tie_word_embeddings=True, attention_bias=True), tmp_path / "out.gguf")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert os.listdir(tmp_path) == ["adapter"]


def test_an_architecture_that_is_not_known(tmp_path: Path) -> None:
    model = ARCHITECTURES["gpt_neox"].build()
    adapter = lorakit.save(lorakit.apply("adapt dense rank 2", model), tmp_path / "adapter")
    with pytest.raises(lorakit.AdapterError, match="type 'gpt_neox' have no known layout in GGUF; known are: arcee"):
        export(adapter, ARCHITECTURES["gpt_neox"].build(), tmp_path / "out.gguf")
    with pytest.raises(lorakit.AdapterError, match="models of type ''"):
        export(adapter, nn.Sequential(nn.Linear(2, 2)), tmp_path / "out.gguf")


def test_values_beyond_half_precision(tmp_path: Path) -> None:
    model = lorakit.apply("adapt q_proj rank 2", make_llama())
    with torch.no_grad():
        model.get_submodule("model.layers.0.self_attn.q_proj").lora_B.fill_(1e6)  # type: ignore[operator]
    adapter = lorakit.save(model, tmp_path / "adapter")
    with pytest.raises(lorakit.AdapterError, match=r"blk.0.attn_q.weight.lora_b has values beyond float16"):
        export(adapter, make_llama(), tmp_path / "out.gguf", "f16")
    assert os.listdir(tmp_path) == ["adapter"]


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def missing(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "gguf":
            raise ImportError("No module named 'gguf'")
        return found(name, *arguments, **more)

    adapter = lorakit.save(lorakit.apply("adapt q_proj rank 2", make_llama()), tmp_path / "adapter")
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(lorakit.LorakitError, match=r"pip install 'lorakit\[gguf\]'"):
        export(adapter, make_llama(), tmp_path / "out.gguf")


def test_the_command(tmp_path: Path) -> None:
    base, target = tmp_path / "base", tmp_path / "adapter.gguf"
    make_llama().save_pretrained(base)
    # the config is all that is read of the model
    for weights in base.glob("*.safetensors"):
        weights.unlink()
    adapter = lorakit.save(lorakit.apply("adapt q_proj rank 2 alpha 8", make_llama()), tmp_path / "adapter")
    said = command(adapter, base, "-o", target, name="export").stdout
    assert "2 pairs of matrices for llama, alpha 8" in said and "in f32" in said
    assert "exists" in command(adapter, base, "-o", target, name="export", code=2).stderr
    command(adapter, base, "-o", target, "--force", "--dtype", "bf16", name="export")
    make_gpt2().save_pretrained(tmp_path / "gpt2")  # type: ignore[operator]
    done = command(adapter, tmp_path / "gpt2", "-o", tmp_path / "other.gguf", name="export", code=2)
    assert "is for another model" in done.stderr and not (tmp_path / "other.gguf").exists()
