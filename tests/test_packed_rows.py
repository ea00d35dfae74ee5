"""Several records in one row: they do not see each other, and a model that lets them is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lorakit
from helpers import byte_tokenizer, make_gpt2, make_llama, randomize
from lorakit.cli.main import app
from lorakit.data.tokens import IGNORED, TokenRow
from lorakit.trainers.packing import check_apart, check_signature, collate, features, packed


def rows(*lengths: int) -> list[TokenRow]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randint(3, 128, (length,), generator=generator).tolist() for length in lengths]
    return [TokenRow(ids, list(ids), False) for ids in made]


def make_sliding() -> nn.Module:
    """A Mistral whose layers see the last four tokens."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    return MistralForCausalLM(
        MistralConfig(
            num_hidden_layers=2, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=128, sliding_window=4,
        )
    )  # fmt: skip


def make_mamba() -> nn.Module:
    """A model that carries a state from token to token, whoever they belong to."""
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(num_hidden_layers=2, hidden_size=32, vocab_size=128, state_size=4))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [make_llama, make_gpt2, make_sliding])
def test_logits_of_a_packed_row_are_those_of_the_row_alone(make: Callable[[], nn.Module], attention: str) -> None:
    model = make()
    model.set_attn_implementation(attention)  # type: ignore[operator]
    model.config.use_cache = False  # type: ignore[union-attr]
    randomize(lorakit.apply("adapt @attention rank 4", model.eval()))
    three = rows(7, 12, 5)
    batch = collate([features(three), features(rows(6, 9))], pad=0)
    together = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits[0]
    for row, logits in zip(three, together.split([7, 12, 5]), strict=True):
        torch.testing.assert_close(logits, model(torch.tensor([row.input_ids])).logits[0], rtol=1e-5, atol=1e-5)
    check_signature(model)
    check_apart(model, three, 0, 2)


def test_the_loss_of_packed_rows_is_that_of_the_rows_apart() -> None:
    model = make_llama(use_cache=False).eval()
    many = rows(7, 12, 5, 9, 14)
    batch = collate([features(pack) for pack in packed(many, 24)], pad=0)
    apart = sum(float(one_by_one(model, row)) for row in many) / sum(len(row.input_ids) - 1 for row in many)
    assert float(model(**batch).loss) == pytest.approx(apart, abs=1e-5)


def one_by_one(model: nn.Module, row: TokenRow) -> Tensor:
    ids = torch.tensor([row.input_ids])
    loss: Tensor = model(ids, labels=ids).loss * (len(row.input_ids) - 1)
    return loss


def test_packs_hold_every_row_once_and_nothing_is_predicted_across_rows() -> None:
    many = rows(*(3 + (number * 7) % 13 for number in range(40)))
    packs = packed(many, 20)
    assert sorted(id(row) for pack in packs for row in pack) == sorted(map(id, many))
    sizes = [sum(len(row.input_ids) for row in pack) for pack in packs]
    assert max(sizes) <= 20 and sum(sizes) > 0.9 * 20 * len(packs)
    made = features(packs[0])
    starts = [at for at, position in enumerate(made["position_ids"]) if position == 0]
    assert len(starts) == len(packs[0]) and all(made["labels"][at] == IGNORED for at in starts)


def leaking() -> nn.Module:
    """A Llama that takes positions and heeds them, but whose mask is one's own."""
    model = make_llama()
    forward = model.forward

    def forgetful(input_ids: Tensor, position_ids: Tensor, **more: object) -> object:
        return forward(input_ids, position_ids=position_ids, attention_mask=torch.ones_like(input_ids), **more)

    model.forward = forgetful
    return model


def test_models_that_mix_records_are_refused_by_name() -> None:
    with pytest.raises(lorakit.ModelError, match="MambaForCausalLM takes no position_ids"):
        check_signature(make_mamba())
    check_signature(leaking())
    with pytest.raises(lorakit.ModelError, match="LlamaForCausalLM lets the records of a row see each other"):
        check_apart(leaking(), rows(20, 9), 0, 2)


def test_the_command_packs_and_refuses(llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": "hello " * (1 + number % 4)}) + "\n" for number in range(16)))
    spec = tmp_path / "spec.lora"
    spec.write_text("adapt @linear rank 2\n")
    command = ["train", str(spec), str(llama_folder), str(data), "--pack", "--tokens", "48", "--held-out", "0"]
    app([*command, "-o", str(tmp_path / "out"), "--epochs", "1", "--batch", "2"], standalone_mode=False)
    said = capsys.readouterr().out
    # 4 × (7 + 13 + 19 + 25) tokens
    assert "16 rows to train on, packed into 6 of 48 tokens, 89% full" in said and "packing on" in said
    # every token once
    lines = [json.loads(line) for line in (tmp_path / "out" / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    mamba = tmp_path / "mamba"
    make_mamba().save_pretrained(mamba)  # type: ignore[operator]
    byte_tokenizer().save_pretrained(mamba)
    with pytest.raises(lorakit.ModelError, match="MambaForCausalLM takes no position_ids"):
        app(["train", str(spec), str(mamba), *command[3:], "-o", str(tmp_path / "none")], standalone_mode=False)
