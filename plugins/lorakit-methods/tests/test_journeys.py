"""Every method and start on a small Llama with biases: trained, saved, loaded, merged, stacked, by row and streamed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from forked import shared
from peft import PeftModel
from peft_twin import train_tokens
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import lorakit
from helpers import make_gpt2, make_llama
from lorakit.layers.quantized_linear import QuantizedLinear

TOKENS = torch.randint(0, 128, (3, 12), generator=torch.Generator().manual_seed(1))
DORA = "adapt q_proj,down_proj rank 4 alpha 8 method dora dtype fp32"
IA3 = "adapt k_proj,v_proj method ia3 dtype fp32\nadapt down_proj method ia3(feedforward=true) dtype fp32"
VERA = "adapt q_proj,v_proj,down_proj rank 8 method vera dtype fp32"
PISSA = "adapt q_proj,down_proj rank 4 alpha 8 init pissa dtype fp32"
EVA = "adapt q_proj,down_proj rank 4 alpha 8 init eva dtype fp32"
DORA_PISSA = "adapt q_proj,down_proj rank 4 alpha 8 method dora init pissa dtype fp32"
MIXED = f"{DORA}\nadapt k_proj,v_proj method ia3 dtype fp32\nadapt o_proj rank 4 init pissa dtype fp32"
TEXTS = {"dora": DORA, "ia3": IA3, "vera": VERA, "pissa": PISSA, "eva": EVA, "dora-pissa": DORA_PISSA, "mixed": MIXED}
# the biases of the base train too
TEXTS |= {f"{name}-biases": TEXTS[name].replace("dtype", "bias adapter dtype") for name in ("dora", "ia3")}

# what PEFT computes by itself from the folder
IN_PEFT = {name: TEXTS[name] for name in ("dora", "dora-biases", "ia3", "vera", "eva")}
# what stands on a base that stays as it is, and so can come second and be taken off
SWITCHED = {name: TEXTS[name] for name in ("dora", "ia3", "vera", "eva")}
QUANTS = ["", "quant nf4 double", "quant hqq"]
CALIBRATION = [{"input_ids": TOKENS}]


def llama(seed: int = 0) -> nn.Module:
    """Return a small Llama whose biases are not zero."""
    model = make_llama(seed, attention_bias=True, mlp_bias=True).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def with_quant(text: str, quant: str) -> str:
    return "\n".join(f"{line} {quant}" for line in text.splitlines())


def trained(text: str, model: nn.Module | Path | None = None, name: str = "default") -> nn.Module:
    adapted = lorakit.apply(text, llama() if model is None else model, name=name, calibration=CALIBRATION)
    train_tokens(adapted, TOKENS)
    return adapted


def logits(model: nn.Module, tokens: Tensor = TOKENS) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(tokens).logits
    return result


def same(first: Tensor, second: Tensor) -> None:
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("name", TEXTS)
def test_a_saved_adapter_comes_back_bit_for_bit_and_merges(name: str, quant: str, tmp_path: Path) -> None:
    model = trained(with_quant(TEXTS[name], quant))
    assert float((logits(model) - logits(llama())).abs().max()) > 1e-3
    folder = lorakit.save(model, tmp_path / "adapter")
    again = lorakit.load(folder, llama())
    assert torch.equal(logits(again), logits(model))
    second = lorakit.save(again, tmp_path / "second")
    files = [load_file(one / "adapter_model.safetensors") for one in (folder, second)]
    assert files[0].keys() == files[1].keys() and all(torch.equal(files[0][key], files[1][key]) for key in files[0])
    wanted = logits(model)
    merged = lorakit.merge(model)
    same(logits(merged), wanted)
    assert not any(type(module).__module__.startswith("lorakit") for module in merged.modules())


@pytest.mark.parametrize("name", IN_PEFT)
def test_peft_loads_the_folder_and_computes_the_same(name: str, tmp_path: Path) -> None:
    model = trained(TEXTS[name])
    theirs = PeftModel.from_pretrained(llama(), lorakit.save(model, tmp_path / "adapter")).eval()
    same(logits(theirs), logits(model))
    # and merges the same
    same(logits(theirs.merge_and_unload()), logits(lorakit.merge(model)))


@pytest.mark.parametrize("name", ["pissa", "dora-pissa", "mixed"])
def test_peft_refuses_by_name_what_it_cannot_compute(name: str, tmp_path: Path) -> None:
    folder = lorakit.save(trained(TEXTS[name]), tmp_path / "adapter")
    with pytest.raises(KeyError, match="LORAKIT_(LORA|DORA|DORA_IA3_LORA)_ON_CHANGED_BASE"):
        PeftModel.from_pretrained(llama(), folder)


@pytest.mark.parametrize("quant", ["", "quant nf4 double"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_merge_from_disk_is_the_merge_in_memory(name: str, quant: str, tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "base")  # type: ignore[operator]
    adapter = lorakit.save(trained(with_quant(TEXTS[name], quant)), tmp_path / "adapter")
    done = shared().run("merge", adapter, tmp_path / "base", "-o", tmp_path / "merged")
    assert done.returncode == 0 and "whole model" not in done.stderr, done.stderr
    expected = lorakit.merge(lorakit.load(adapter, llama(), quantize=False))
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    for key, value in expected.state_dict().items():
        same(found.state_dict()[key], value)
    same(logits(found), logits(expected))


@pytest.mark.parametrize("second", SWITCHED)
@pytest.mark.parametrize("first", [*SWITCHED, "pissa"])
def test_two_adapters_stack_are_weighted_removed_and_merged(first: str, second: str) -> None:
    base = logits(llama())
    alone = {name: logits(trained(TEXTS[name])) for name in {first, second}}
    model = trained(TEXTS[first], name="one")
    trained_second = trained(SWITCHED[second], llama())
    lorakit.apply(SWITCHED[second], model, name="two", calibration=CALIBRATION)
    _copy(trained_second, model, "two")
    model.eval()
    adapters = lorakit.adapters(model)
    same(logits(model), alone[second])
    with adapters.disabled():
        same(logits(model), base)
        assert first == "pissa" or torch.equal(logits(model), base)
    adapters.use("one")
    assert torch.equal(logits(model), alone[first])
    with adapters.rows(["one", "two", None]):
        rows = logits(model)
    for row, wanted in enumerate((alone[first], alone[second], base)):
        same(rows[row], wanted[row])
    adapters.use({"one": 0.5, "two": 0.75})
    both = logits(model)
    with adapters.merged():
        same(logits(model), both)
    same(logits(model), both)
    if first == "pissa":
        with pytest.raises(lorakit.ModelError, match="put it out of use instead"):
            adapters.remove("one")
    else:
        adapters.remove("one")
    adapters.use("two")
    same(logits(model), alone[second])


@pytest.mark.parametrize("quant", QUANTS)
def test_what_a_start_took_is_given_back_out_of_use(quant: str, tmp_path: Path) -> None:
    """On a quantized base all but what storing the rest in four bits lost, which the adapter in use lacks as well."""
    base, start = logits(llama()), lorakit.apply(with_quant(PISSA, quant), llama())
    fresh = logits(start)
    model = trained(with_quant(PISSA, quant))
    used = logits(model)
    adapters = lorakit.adapters(model)
    with adapters.disabled():
        same(logits(model), fresh)
        assert quant or not torch.allclose(logits(model), used, atol=1e-3)
    assert torch.equal(logits(model), used)
    if not quant:
        same(fresh, base)
    # a folder is that of the adapter in use, whatever was given back meanwhile
    again = lorakit.load(lorakit.save(model, tmp_path / "adapter"), llama())
    assert torch.equal(logits(again), used)
    with lorakit.adapters(again).disabled():
        same(logits(again), fresh)
    with adapters.merged():
        same(logits(model), used)
    same(logits(lorakit.merge(model)), used)


def test_what_is_given_back_stays_so_where_another_adapter_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(PISSA)
    used = logits(model)

    def fail(*_: object) -> None:
        raise RuntimeError("ready for nothing")

    with monkeypatch.context() as patched:
        patched.setattr("lorakit.hooks.manager.Plugins.model_ready", fail)
        with pytest.raises(RuntimeError, match="ready for nothing"):
            lorakit.apply(EVA, model, name="second", calibration=CALIBRATION)
    assert torch.equal(logits(model), used)
    with lorakit.adapters(model).disabled():
        same(logits(model), logits(llama()))
    assert torch.equal(logits(model), used)


def test_a_part_of_another_method_gives_back_as_much_of_a_changed_base() -> None:
    model, base = trained(DORA_PISSA), llama()
    adapters, used = lorakit.adapters(model), logits(model)
    with adapters.rows(["default", None, "default"]):
        rows = logits(model)
    with adapters.disabled():
        same(logits(model), logits(base))
    for row, wanted in enumerate((used, logits(base), used)):
        same(rows[row], wanted[row])
    adapters.use({"default": 0.25})
    part = logits(model)
    with adapters.merged():
        same(logits(model), part)
    adapters.use("default")
    assert torch.equal(logits(model), used)
    merged = lorakit.merge(model)
    with torch.no_grad():
        for own, whole in zip(base.parameters(), merged.parameters(), strict=True):
            own.lerp_(whole, 0.25)
    same(part, logits(base))


def _copy(source: nn.Module, target: nn.Module, name: str) -> None:
    """Give an adapter the values of the only one of another model, through a folder."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        lorakit.adapters(target).swap(name, lorakit.save(source, Path(folder, "adapter")))


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("name", TEXTS)
def test_a_model_that_is_quantized_while_it_is_read_starts_with_the_same_bits(
    name: str, quant: str, tmp_path: Path
) -> None:
    llama().save_pretrained(tmp_path / "base")  # type: ignore[operator]
    text = with_quant(TEXTS[name], quant)
    streamed = lorakit.apply(text, tmp_path / "base", seed=3, calibration=CALIBRATION).eval()
    whole = lorakit.apply(text, llama(), seed=3, calibration=CALIBRATION)
    assert torch.equal(logits(streamed), logits(whole))
    assert any(isinstance(module, QuantizedLinear) for module in streamed.modules()) == bool(quant)
    # a start changes nothing, but for what quantizing costs a part of the weight and not the whole
    plain = lorakit.merge(lorakit.apply(text, llama(), calibration=CALIBRATION)) if quant else llama()
    same(logits(streamed), logits(plain))
    saved = lorakit.save(streamed, tmp_path / "adapter")
    assert torch.equal(logits(lorakit.load(saved, tmp_path / "base")), logits(streamed))


@pytest.mark.parametrize("name", ["dora", "ia3", "vera", "pissa"])
def test_gpt2_whose_weights_lie_transposed(name: str, tmp_path: Path) -> None:
    text = TEXTS[name].replace("q_proj,v_proj", "c_attn").replace("k_proj,v_proj", "c_attn")
    text = text.replace("q_proj", "c_attn").replace("down_proj", "mlp.c_proj")
    model = trained(text, make_gpt2().eval())
    folder, wanted = lorakit.save(model, tmp_path / "adapter"), logits(model)
    if name != "pissa":
        same(logits(PeftModel.from_pretrained(make_gpt2().eval(), folder)), wanted)
    assert torch.equal(logits(lorakit.load(folder, make_gpt2())), wanted)
    same(logits(lorakit.merge(model)), wanted)
