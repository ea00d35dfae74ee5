"""The same start, rows and trainer give the losses that PEFT gives, and `lorakit train` has those of TRL's SFT."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Nursery
from torch import nn

import lorakit
from helpers import byte_tokenizer, make_llama

peft = pytest.importorskip("peft")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
ADAPT = "adapt q_proj,v_proj,down_proj rank 4 alpha 8"
SIZES = {"vocab_size": 260, "max_position_embeddings": 128}
STEPS = 4
TEXTS = [{"text": f"{'say ' * (number % 4)}{number} and {number * 37}"} for number in range(16)]
COMPLETIONS = [{"prompt": f"say {number}: ", "completion": f"it is {number * 37}"} for number in range(16)]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"say {number}"},
            {"role": "assistant", "content": f"it is {number * 37}"},
            {"role": "user", "content": "again"},
            {"role": "assistant", "content": "no" * (number % 3)},
        ]
    }
    for number in range(16)
]
# says itself what the assistant said
MARKED = (
    "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}<eos>{% else %}<bot>{% generation %}"
    "{{ m.content }}<eos>{% endgeneration %}{% endif %}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)
PACKED = {"packing": True, "max_length": 48}
FORMS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "text": (TEXTS, {}),
    "completions": (COMPLETIONS, {}),
    "chats": (CHATS, {}),
    "chats, the assistant's words alone": (CHATS, {"assistant_only_loss": True}),
    "packed": (TEXTS, {**PACKED, "packing_strategy": "bfd"}),
    "packed completions": (COMPLETIONS, {**PACKED, "packing_strategy": "bfd"}),
    "wrapped": (TEXTS, {**PACKED, "packing_strategy": "wrapped"}),
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = byte_tokenizer()
    made.pad_token, made.chat_template = made.eos_token, MARKED
    return made


def losses(model: nn.Module, rows: list[Any], folder: Path, tokenizer: Any, **settings: Any) -> list[float]:
    """Return the losses of TRL's SFTTrainer, with Trainer's own AdamW."""
    settings = {"learning_rate": 1e-2, "bf16": False, **settings}
    arguments = trl.SFTConfig(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=2, logging_steps=1, report_to=[],
        use_cpu=True, disable_tqdm=True, save_strategy="no", **settings,
    )  # fmt: skip
    data = datasets.Dataset.from_list(rows)
    trainer = trl.SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def peer(mine: nn.Module, base: nn.Module, folder: Path) -> Any:
    """Return PEFT's adapters on a base, with the values and dtypes of lorakit's."""
    lorakit.save(mine, folder)
    made = peft.PeftModel.from_pretrained(base, folder, is_trainable=True)
    for name, value in made.named_parameters():
        if value.requires_grad:
            # PEFT makes them in the dtype of the base
            own = mine.get_parameter(name.removeprefix("base_model.model.").removesuffix(".default.weight"))
            value.data = value.data.to(own.dtype)
            assert torch.equal(value, own)
    return made


# where a gradient in bf16 rounds either way, AdamW steps either way: what that makes goes with the rate
DTYPES = {"fp32": (1e-2, 1e-5), "bf16": (1e-3, 1e-4)}


# forms that differ in what is learned of a row, and in how rows lie in a batch
FEW = ("text", "chats, the assistant's words alone", "packed completions")
EACH = [
    pytest.param(dtype, form, marks=[pytest.mark.slow] if dtype == "bf16" and form not in FEW else [])
    for dtype in DTYPES
    for form in FORMS
]


@pytest.mark.parametrize(("dtype", "form"), EACH)
def test_sft_has_the_losses_of_peft(form: str, dtype: str, tmp_path: Path, tokenizer: Any) -> None:
    rate, tolerance = DTYPES[dtype]
    rows, settings = FORMS[form]
    mine = lorakit.apply(f"{ADAPT} dtype {dtype}", make_llama(**SIZES))
    theirs = peer(mine, make_llama(**SIZES), tmp_path / "start")
    found, peers = (
        losses(model, rows, tmp_path / "run", tokenizer, learning_rate=rate, **settings) for model in (mine, theirs)
    )
    assert max(found) - min(found) > 100 * tolerance
    assert found == pytest.approx(peers, abs=tolerance)


@pytest.mark.parametrize("form", ["completions", "packed"])
def test_sft_on_a_quantized_base_has_the_losses_of_peft_on_what_it_stands_for(
    form: str, tmp_path: Path, tokenizer: Any
) -> None:
    rows, settings = FORMS[form]
    spec = f"{ADAPT} quant nf4 double dtype fp32"
    mine = lorakit.apply(spec, make_llama(**SIZES))
    # a fresh adapter adds nothing: what is merged is the base
    theirs = peer(mine, lorakit.merge(lorakit.apply(spec, make_llama(**SIZES))), tmp_path / "start")
    found, peers = (losses(model, rows, tmp_path / "run", tokenizer, **settings) for model in (mine, theirs))
    assert len(set(found)) == STEPS and found == pytest.approx(peers, abs=1e-5)


@pytest.mark.parametrize("form", ["text", "completions", "chats, the assistant's words alone"])
def test_the_command_has_the_losses_of_sft(form: str, tmp_path: Path, tokenizer: Any, nursery: Nursery) -> None:
    """Where rows mean the same to both; the same order of rows, schedule and clipping are the defaults of both."""
    rows, settings = FORMS[form]
    base, spec, data = tmp_path / "base", tmp_path / "spec.lora", tmp_path / "data.jsonl"
    make_llama(**SIZES).save_pretrained(base)
    tokenizer.save_pretrained(base)
    spec.write_text(f"{ADAPT} dtype fp32\n")
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    given = ["--steps", STEPS, "--batch", 2, "--held-out", 0, "--lr", 1e-2, "--seed", 5]
    nursery.done("train", spec, base, data, "-o", tmp_path / "out", *given)
    history = [json.loads(line) for line in (tmp_path / "out" / "history.jsonl").read_text().splitlines()]
    model = lorakit.apply(lorakit.parse(spec), make_llama(**SIZES), seed=5)
    # before it draws what is held out, which here is nothing, the command brings them into an order
    rows = list(rows)
    random.Random(5).shuffle(rows)
    found = losses(model, rows, tmp_path / "run", tokenizer, seed=5, data_seed=5, **settings)
    assert len(set(found)) == STEPS
    assert found == pytest.approx([record["loss"] for record in history if "loss" in record], abs=1e-5)
    trained, values = lorakit.load(tmp_path / "out", base), dict(model.named_parameters())
    for name, value in trained.named_parameters():
        torch.testing.assert_close(value, values[name], rtol=0, atol=1e-4)
