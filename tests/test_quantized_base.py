"""Saved quantized bases: transformers reads them where it can, and nothing is ever quantized a second time."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_cli import lorakit_command
from test_streaming import Plugin, assert_same, sharded
from torch import Tensor, nn

import lorakit
from architectures import ARCHITECTURES, Architecture
from helpers import bitsandbytes_weight, byte_tokenizer, make_gpt2, make_llama, randomize
from lorakit.layers.quantized_linear import QuantizedLinear

QUANTIZERS = ["nf4", "nf4 double", "fp4", "fp4 double", "int8"]
OWN_FORM = [
    ("quantize @linear nf4(blocksize=128) double", "blocks of 64, and this has 128"),
    ("quantize @linear nf4\nquantize @attention int8", "stored in 2 ways"),
]


def bf16(model: nn.Module, folder: Path) -> Path:
    return sharded(model.to(torch.bfloat16), folder)


def stored(folder: Path) -> dict[str, Tensor]:
    """Return everything in the safetensors files of a folder."""
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def peer_config(quant: str) -> Any:
    from transformers import BitsAndBytesConfig

    if quant == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant[:3],
        bnb_4bit_use_double_quant="double" in quant,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


@pytest.mark.parametrize("quant", QUANTIZERS)
@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_the_files_are_what_transformers_writes(make: Any, quant: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = bf16(make(), tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=peer_config(quant), dtype=torch.bfloat16, device_map="cpu"
    )
    theirs.save_pretrained(tmp_path / "theirs")
    lorakit.save(lorakit.apply(f"quantize @linear {quant}", folder), tmp_path / "ours", with_base=True)
    ours, wanted = stored(tmp_path / "ours" / "base"), stored(tmp_path / "theirs")
    assert ours.keys() == wanted.keys()
    for name, value in wanted.items():
        assert value.dtype == ours[name].dtype and torch.equal(value, ours[name]), name
    configs = [
        json.loads((place / "config.json").read_text()) for place in (tmp_path / "ours/base", tmp_path / "theirs")
    ]
    for config in configs:
        # what transformers skips by default, and lorakit names
        config["quantization_config"].pop("llm_int8_skip_modules")
    if quant == "int8":
        configs[1]["quantization_config"]["bnb_4bit_compute_dtype"] = "float32"
    assert configs[0] == configs[1]


@pytest.mark.parametrize("quant", QUANTIZERS)
@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_transformers_reads_the_same_weights(make: Any, quant: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = lorakit.apply(f"quantize @attention {quant}", bf16(make(), tmp_path / "model"))
    lorakit.save(model, tmp_path / "ours", with_base=True)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours" / "base")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    for name, layer in layers.items():
        peer: Any = theirs.get_submodule(name)
        if quant == "int8":
            weight = bnb.functional.int8_vectorwise_dequant(peer.weight.data, peer.weight.SCB).to(torch.bfloat16)
        else:
            weight = bitsandbytes_weight(peer.weight.data, peer.weight.quant_state)
        assert torch.equal(weight, layer.weight), name
    packed = {name for name, module in theirs.named_modules() if type(module).__module__.startswith("bitsandbytes")}
    assert packed == layers.keys()


@pytest.mark.parametrize("quant", QUANTIZERS)
def test_an_adapter_goes_on_its_saved_base(quant: str, tmp_path: Path, tokens: Tensor) -> None:
    folder = bf16(make_llama(), tmp_path / "model")
    byte_tokenizer().save_pretrained(folder)
    model = lorakit.apply(f"adapt q_proj,v_proj rank 4 quant {quant}\nquantize @mlp {quant}", folder).eval()
    randomize(model)
    lorakit.save(model, tmp_path / "out", with_base=True)
    assert {"tokenizer.json", "config.json", "model.safetensors"} <= set(os.listdir(tmp_path / "out" / "base"))
    again = lorakit.load(tmp_path / "out", tmp_path / "out" / "base")
    assert_same(model, again)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, again(tokens).logits)
    # the folder may be written anew, base and all, and not without the base that it would lose
    lorakit.save(again, tmp_path / "out", with_base=True)
    assert_same(model, lorakit.load(tmp_path / "out", tmp_path / "out" / "base"))
    with pytest.raises(lorakit.OutputError, match="base"):
        lorakit.save(again, tmp_path / "out")


@pytest.mark.parametrize(("spec", "reason"), OWN_FORM)
@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_what_transformers_cannot_say_is_kept_in_our_own_form(
    make: Any, spec: str, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = lorakit.apply(spec, bf16(make(), tmp_path / "model"))
    with caplog.at_level("INFO", "lorakit"):
        lorakit.save(model, tmp_path / "out", with_base=True)
    assert reason in caplog.text
    again = lorakit.load(tmp_path / "out", tmp_path / "out" / "base")
    assert_same(model, again)
    assert not hasattr(again.config, "quantization_config")


def test_a_quantizer_of_a_plugin(tmp_path: Path) -> None:
    plugins = lorakit.plugins.load_plugins(modules={"mine": Plugin})
    spec = lorakit.parse("adapt q_proj rank 2 quant picky\nquantize @linear none", plugins=plugins)
    model = lorakit.apply(spec, bf16(make_llama(), tmp_path / "model"), plugins=plugins)
    lorakit.save(model, tmp_path / "out", with_base=True)
    assert_same(model, lorakit.load(tmp_path / "out", tmp_path / "out" / "base", plugins=plugins))
    with pytest.raises(lorakit.PluginError, match="no quantizer is called `picky`"):
        lorakit.plan("adapt v_proj rank 2", tmp_path / "out" / "base")


BOTH_FORMS = ["quantize @linear nf4 double", OWN_FORM[0][0]]
# both with --slow; an architecture's weights lie no differently in the two
IN_TURN = [
    pytest.param(architecture, spec, id=f"{name}-{spec}", marks=[] if (row + place) % 2 == 0 else [pytest.mark.slow])
    for row, (name, architecture) in enumerate(ARCHITECTURES.items())
    for place, spec in enumerate(BOTH_FORMS)
]


@pytest.mark.parametrize(("architecture", "spec"), IN_TURN)
def test_every_architecture_comes_back(architecture: Architecture, spec: str, tmp_path: Path) -> None:
    model = lorakit.apply(spec, bf16(architecture.build(), tmp_path / "model"))
    lorakit.save(model, tmp_path / "out", with_base=True)
    assert_same(model, lorakit.load(tmp_path / "out", tmp_path / "out" / "base"))


@pytest.mark.parametrize("spec", BOTH_FORMS)
def test_a_base_plans_as_what_it_is(spec: str, tmp_path: Path) -> None:
    folder = bf16(make_llama(), tmp_path / "model")
    lorakit.save(lorakit.apply(spec, folder), tmp_path / "out", with_base=True)
    base = tmp_path / "out" / "base"
    quant = spec.removeprefix("quantize @linear ")
    before, after = (lorakit.plan(f"adapt @linear rank 2 quant {quant}", place) for place in (folder, base))
    assert after.memory.weights == after.memory.weights_before == before.memory.weights
    assert after.model_parameters == before.model_parameters and after.trainable == before.trainable
    with pytest.raises(lorakit.PlanError, match=r"quantized already, and this asks for fp4"):
        lorakit.plan("adapt q_proj rank 2 quant fp4", base)
    with pytest.raises(lorakit.PlanError, match="stored as .*, and cannot train in full"):
        lorakit.plan("train q_proj", base)
    # a model in memory says the same
    model = lorakit.apply("adapt v_proj rank 2", base)
    with pytest.raises(lorakit.PlanError, match="quantized already"):
        lorakit.plan("adapt q_proj rank 2 quant nf4(blocksize=256)", model)


def test_the_dtype_of_the_base_is_not_an_adapters(tmp_path: Path) -> None:
    spec = "adapt embed_tokens rank 2 dtype fp32\nquantize @linear nf4"
    lorakit.save(lorakit.apply(spec, bf16(make_llama(), tmp_path / "model")), tmp_path / "out", with_base=True)
    assert json.loads((tmp_path / "out" / "base" / "config.json").read_text())["dtype"] == "bfloat16"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    model = lorakit.apply(OWN_FORM[0][0], bf16(make_llama(), tmp_path / "model"))
    lorakit.save(model, tmp_path / "out", with_base=True)
    base = tmp_path / "out" / "base"
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    save_file(
        {key: value for key, value in tensors.items() if key != f"{name}.weight_absmax"}, base / "model.safetensors"
    )
    with pytest.raises(lorakit.ModelError, match=rf"`{name}` is stored as nf4, and its tensor `absmax` is missing"):
        lorakit.load(tmp_path / "out", base)
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"]["layers"]["model.nowhere"] = config["quantization_config"]["layers"][name]
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(lorakit.ModelError, match="quantized at `model.nowhere`, which LlamaForCausalLM lacks"):
        lorakit.plan("adapt q_proj rank 2", base)
    config["quantization_config"] |= {"version": 2}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(lorakit.ModelError, match="version 2"):
        lorakit.plan("adapt q_proj rank 2", base)


def test_no_base_without_a_quantized_hugging_face_model(tmp_path: Path) -> None:
    plain = lorakit.apply("quantize 0 nf4", nn.Sequential(nn.Linear(8, 8)))
    with pytest.raises(lorakit.ModelError, match="plain PyTorch model"):
        lorakit.save(plain, tmp_path / "out", with_base=True)
    model = lorakit.apply("adapt q_proj rank 2", make_llama())
    with pytest.raises(lorakit.ModelError, match="nothing in this model is quantized"):
        lorakit.save(model, tmp_path / "out", with_base=True)
    assert not (tmp_path / "out").exists()


def test_the_command_line(llama_folder: Path, tmp_path: Path) -> None:
    spec, data = tmp_path / "spec.lora", tmp_path / "data.txt"
    spec.write_text("adapt q_proj,v_proj rank 2 quant nf4 double\nquantize @linear nf4 double\n")
    data.write_text("one and two\n" * 40)
    done = lorakit_command("apply", spec, llama_folder, "-o", tmp_path / "out", "--with-base")
    assert "base: a checkpoint that transformers reads by itself" in done.stdout and not done.stderr.count("%|")
    base = tmp_path / "out" / "base"
    lorakit_command("train", spec, base, data, "-o", tmp_path / "trained", "--steps", 2, "--held-out", 0, "--with-base")
    assert stored(tmp_path / "trained" / "base").keys() == stored(base).keys()
    assert all(torch.equal(value, stored(base)[name]) for name, value in stored(tmp_path / "trained" / "base").items())
    lorakit_command("merge", tmp_path / "trained", base, "-o", tmp_path / "merged")
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not hasattr(merged.config, "quantization_config")
    assert type(merged.model.layers[0].mlp.up_proj) is nn.Linear
    broken = sorted(llama_folder.glob("*.safetensors"))[0]
    broken.write_bytes(broken.read_bytes()[:-100])
    failed = lorakit_command("apply", spec, llama_folder, "-o", tmp_path / "never", code=2)
    assert "damaged or cut short" in failed.stderr and not (tmp_path / "never").exists()


@pytest.mark.parametrize("spec", ["adapt attn.c_proj rank 2 quant nf4", "adapt c_attn rank 2; quantize @linear nf4"])
def test_a_merged_model_is_saved_as_its_class_holds_its_layers(spec: str, tmp_path: Path, gpt2: nn.Module) -> None:
    """A Conv1D's weight lies transposed, and where it is square no shape would tell."""
    tokens = torch.randint(0, 128, (2, 8), generator=torch.Generator().manual_seed(1))
    merged = lorakit.merge(lorakit.apply(spec, gpt2))
    merged.save_pretrained(tmp_path)  # type: ignore[operator]
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(tokens).logits, merged(tokens).logits, rtol=1e-5, atol=1e-5)
    assert {type(one) for one in merged.modules()} == {type(one) for one in again.modules()}
