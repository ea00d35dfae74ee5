"""What scripts, transformers, PEFT and TRL do with a model beside training it, once lorakit adapted it."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lorakit
from helpers import adapters, make_llama, randomize

SPEC = "adapt q_proj,v_proj rank 4 dropout 0.1 quant nf4 double\ntrain model.norm"
LOADED = """
import sys, torch
sys.path[:0] = {path!r}
import lorakit
model = torch.load({file!r}, weights_only=False)
lorakit.save(model, {adapter!r})
torch.save(model.eval()(torch.arange(12)[None]).logits, {out!r})
model.train()
loss = model(torch.arange(12)[None], labels=torch.arange(12)[None]).loss
loss.backward()
lorakit.optimizer(model).step()
"""


def test_a_model_goes_to_another_process_as_a_pickle(tmp_path: Path) -> None:
    model: Any = lorakit.apply(SPEC, make_llama())
    randomize(model)
    torch.save(model, tmp_path / "model.pt")
    names = {name: str(tmp_path / name) for name in ("adapter", "out")}
    code = LOADED.format(path=sys.path, file=str(tmp_path / "model.pt"), **names)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tokens = torch.arange(12)[None]
    expected = model.eval()(tokens).logits
    assert torch.equal(torch.load(tmp_path / "out"), expected)
    assert torch.equal(lorakit.load(tmp_path / "adapter", make_llama())(tokens).logits, expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_trains_saves_and_loads_its_own(copied: Any, tokens: torch.Tensor, tmp_path: Path) -> None:
    model: Any = lorakit.apply(SPEC, make_llama()).train()
    model(tokens, labels=tokens).loss.backward()
    other = copied(model)
    before = adapters(model)
    optimizer = torch.optim.SGD([value for value in other.parameters() if value.requires_grad], lr=1.0)
    other(tokens, labels=tokens).loss.backward()
    optimizer.step()
    other.save_pretrained(tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in adapters(model).items())
    ends = adapters(lorakit.load(tmp_path, make_llama()))
    assert all(torch.equal(value, ends[name]) for name, value in adapters(other).items())
    copied(other).load_state_dict(model.state_dict())
    assert not torch.equal(adapters(other)["model.norm.weight"], before["model.norm.weight"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("adapt embed_tokens,q_proj rank 2", "`model.embed_tokens` has an adapter"),
        ("adapt lm_head,q_proj rank 2", "`lm_head` has an adapter"),
        ("adapt q_proj rank 2\nquantize lm_head nf4", "`lm_head` is stored quantized"),
    ],
)
def test_a_vocabulary_under_an_adapter_is_not_resized(spec: str, message: str, tokens: torch.Tensor) -> None:
    model: Any = lorakit.apply(spec, make_llama())
    before = model.eval()(tokens).logits
    with pytest.raises(lorakit.ModelError, match=f"{message}.*resize_token_embeddings` before `lorakit.apply`"):
        model.resize_token_embeddings(140)
    assert torch.equal(model(tokens).logits, before) and model.get_input_embeddings() is model.resize_token_embeddings()
    merged: Any = lorakit.merge(model)
    merged.resize_token_embeddings(140)
    assert merged(tokens).logits.shape[-1] == 140


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", [140, 120])
def test_a_vocabulary_that_trains_in_full_is_resized_with_the_bases_own(
    size: int, tied: bool, tokens: torch.Tensor
) -> None:
    model: Any = lorakit.apply("adapt q_proj rank 2\ntrain embed_tokens", make_llama(tie_word_embeddings=tied))
    tokens, rows = tokens % 120, min(size, 128)
    base = model.get_input_embeddings().weight[:rows].clone()
    model.resize_token_embeddings(size)
    begun = model.eval()(tokens).logits
    with torch.no_grad():
        model.get_input_embeddings().weight += 0.1
    with lorakit.adapters(model).disabled():
        assert torch.equal(model.get_input_embeddings().weight[:rows], base)
        assert torch.equal(model(tokens).logits, begun)


def test_trainers_turn_dropout_off(tokens: torch.Tensor, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from helpers import byte_tokenizer

    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model: Any = lorakit.apply("adapt q_proj,v_proj rank 4 dropout 0.5", make_llama(vocab_size=260))
    randomize(model)
    assert not torch.equal(model.train()(tokens).logits, model(tokens).logits)
    rows = [{"prompt": "say ", "chosen": "yes", "rejected": "no"}] * 4
    trl.DPOTrainer(
        model=lorakit.peft(model), args=trl.DPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to=[]),
        train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer,
    )  # fmt: skip
    assert torch.equal(model.train()(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("dropout", ["", " dropout 0.5"])
def test_dropout_under_a_fused_head_is_refused(dropout: str, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from helpers import byte_tokenizer

    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model: Any = lorakit.apply(f"adapt lm_head rank 2{dropout}", make_llama(vocab_size=260))
    settings = {"max_steps": 1, "save_strategy": "no", "use_cpu": True, "bf16": False, "report_to": []}
    trainer = trl.SFTTrainer(
        model, trl.SFTConfig(str(tmp_path), **settings), processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list([{"text": "hello"}] * 4),
    )  # fmt: skip
    if not dropout:
        trainer.train()
        return
    with pytest.raises(lorakit.TrainingError, match=r"LoRALinear, 260 × 64.*Leave `dropout` out for this layer"):
        trainer.train()


@pytest.mark.parametrize("method", ["lora", "dora", "vera"])
def test_a_weight_may_be_asked_of_a_layer_that_drops(method: str) -> None:
    if method != "lora":
        pytest.importorskip("lorakit_methods")
    ratio = "" if method == "vera" else " alpha 8"
    model = lorakit.apply(f"adapt 0 rank 2{ratio} dropout 0.5 method {method}", nn.Sequential(nn.Linear(8, 8)))
    layer: Any = model[0]  # type: ignore[index]
    x = torch.ones(2, 8)
    assert layer.weight.dtype == torch.float32
    layer(x.to(layer.weight.dtype)).sum().backward()
    with pytest.raises(lorakit.TrainingError, match="whose adapter has dropout"):
        nn.functional.linear(x, layer.weight).sum().backward()
    layer.eval()
    nn.functional.linear(x, layer.weight).sum().backward()


@pytest.mark.parametrize("kind", ["SequenceClassification", "TokenClassification"])
def test_a_saved_classifier_opens_in_peft_by_itself(kind: str, tokens: torch.Tensor, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    import transformers

    made = getattr(transformers, f"LlamaFor{kind}")
    config = make_llama().config
    config.num_labels, config.pad_token_id = 3, 0
    made(config).save_pretrained(tmp_path / "base")
    model = lorakit.apply("adapt q_proj rank 2\ntrain score", made.from_pretrained(tmp_path / "base"))
    randomize(model)
    with torch.no_grad():
        model.score.weight.normal_()  # type: ignore[operator,union-attr]
    lorakit.save(model, tmp_path / "adapter")
    for auto in (peft.AutoPeftModel, getattr(peft, f"AutoPeftModelFor{kind}")):
        opened = auto.from_pretrained(tmp_path / "adapter")
        assert torch.equal(opened.eval()(tokens).logits, model.eval()(tokens).logits)


@pytest.mark.parametrize("targets", ["q_proj", "k_proj"])
def test_pefts_own_adapters_are_refused_by_both_names(targets: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=[targets])
    for put_on in (
        lambda model: peft.get_peft_model(model, config),
        lambda model: model.add_adapter(config),
        lambda model: peft.inject_adapter_in_model(config, model),
    ):
        model: Any = lorakit.apply("adapt q_proj rank 2", make_llama(), name="mine")
        with pytest.raises(lorakit.ModelError, match=r"a LoraConfig, on a LlamaForCausalLM .* adapted \(`mine`\)"):
            put_on(model)
    merged = lorakit.merge(lorakit.apply("adapt q_proj rank 2", make_llama()))
    assert isinstance(peft.get_peft_model(merged, config), peft.PeftModel)


@pytest.mark.parametrize("bits", [4, 8])
def test_nothing_says_that_transformers_holds_the_base_quantized(bits: int, tmp_path: Path) -> None:
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    make_llama().save_pretrained(tmp_path)
    config: Any = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    model = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=config, device_map="cpu")
    assert getattr(model, f"is_loaded_in_{bits}bit")
    lorakit.apply("adapt q_proj rank 2", model)
    marks = ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit", "quantization_method", "hf_quantizer")
    assert not any(getattr(model, name, None) for name in marks)
