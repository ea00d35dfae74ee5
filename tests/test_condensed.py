"""Batches condensed to what their loss needs: loss and gradients are those of the batch, or the model gets it whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import lorakit
from helpers import make_gpt2, make_llama, randomize
from lorakit.data.tokens import IGNORED, TokenRow
from lorakit.huggingface.record_attention import attention_by_record
from lorakit.trainers.condensed import WAYS, Batch, as_it_is, exact_for, learned_only, learned_places, one_row
from lorakit.trainers.packing import collate, features, packed
from lorakit.trainers.watched_trainer import WatchedTrainer
from test_packed_rows import leaking, make_mamba, make_sliding


def make_mixtral(**changes: Any) -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    sizes: Any = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    return MixtralForCausalLM(
        MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=4, vocab_size=128, **changes)
    )


def make_capped() -> nn.Module:
    """A Gemma 2, whose logits are capped on their way to the loss."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    sizes: Any = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    return Gemma2ForCausalLM(
        Gemma2Config(**sizes, num_key_value_heads=2, head_dim=16, vocab_size=128, final_logit_softcapping=0.5)
    )


def own_loss(**changes: Any) -> nn.Module:
    """A Llama whose forward makes its loss itself, of all the tokens that it reads."""
    model = make_llama(**changes)
    forward = model.forward

    def forward_with_loss(input_ids: Tensor, labels: Tensor | None = None, **arguments: object) -> Any:
        output = forward(input_ids, **arguments)
        output.loss = output.logits.logsumexp(-1).mean()
        return output

    model.forward = forward_with_loss
    return model


def chats(*lengths: int) -> list[TokenRow]:
    """Rows of which the later half is learned, but for the last token."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for length in lengths:
        ids = torch.randint(3, 128, (length,), generator=generator).tolist()
        made.append(TokenRow(ids, [IGNORED] * (length // 2) + ids[length // 2 : -1] + [IGNORED], False))
    return made


def padded(rows: list[TokenRow], *, on_the_left: bool = False) -> Batch:
    longest = max(len(row.input_ids) for row in rows)
    batch = {}
    for name, filling in (("input_ids", 0), ("attention_mask", 0), ("labels", IGNORED)):
        values = [row.features[name] for row in rows]
        rest = [[filling] * (longest - len(one)) for one in values]
        batch[name] = torch.tensor([r + v if on_the_left else v + r for v, r in zip(values, rest, strict=True)])
    return batch


def adapted(model: nn.Module) -> nn.Module:
    randomize(lorakit.apply("adapt @attention rank 4", model.eval()))
    return model


def learned_from(model: nn.Module, batch: Batch, **more: object) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    with attention_by_record():
        loss = model(**batch, **more).loss
        loss.backward()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return float(loss.detach()), gradients


def assert_same(model: nn.Module, whole: Batch, condensed: Batch, **more: object) -> None:
    model.config.use_cache = False  # type: ignore[union-attr]
    loss, gradients = learned_from(model, whole, **more)
    again, others = learned_from(model, condensed, **more)
    assert again == pytest.approx(loss, rel=1e-6)
    assert gradients.keys() == others.keys() and any(bool(one.any()) for one in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("items", [{}, {"num_items_in_batch": torch.tensor(41)}])
@pytest.mark.parametrize("make", [make_llama, make_gpt2, make_sliding, make_mixtral])
def test_loss_and_gradients_are_those_of_the_padded_batch(
    make: Callable[[], nn.Module], items: dict[str, object], way: Callable[[Batch], Batch]
) -> None:
    model = adapted(make())
    whole = padded(chats(7, 12, 5))
    condensed = way(whole)
    assert_same(model, whole, condensed, **items)
    learned = int((whole["labels"] != IGNORED).sum())
    # the rows learn at nine places, of which each learns at some
    assert condensed["labels"].numel() == (3 * 9 if way is learned_places else learned) < whole["labels"].numel()
    if way is one_row:
        # to the last but one learned: what follows it is read by nobody
        assert condensed["input_ids"].shape == (1, 5 + 10 + 3)


@pytest.mark.parametrize("way", WAYS)
def test_packed_and_left_padded_rows_condense_as_well(way: Callable[[Batch], Batch]) -> None:
    model = adapted(make_llama())
    packs = collate([features(pack) for pack in packed(chats(7, 12, 5, 9, 14), 24)], pad=0)
    assert_same(model, packs, way(packs))
    left = padded(chats(7, 12, 5), on_the_left=True)
    assert_same(model, left, way(left))


def test_records_are_computed_one_by_one_in_the_block_alone() -> None:
    model = make_llama().eval()
    batch = one_row(padded(chats(7, 12, 5)))
    with attention_by_record() as seen:
        inside = model(**batch).logits
        assert seen.calls == 2
    torch.testing.assert_close(model(**batch).logits, inside, rtol=1e-5, atol=1e-6)
    assert seen.calls == 2


def test_short_records_are_attended_to_in_float32() -> None:
    model = make_llama().eval()
    batch = one_row(padded(chats(7, 12, 5)))
    exact = model(**batch).logits
    model.bfloat16()
    with attention_by_record():
        logits = model(**batch).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), exact, rtol=0.1, atol=0.02)


@pytest.mark.parametrize(
    ("make", "way"),
    [
        (make_llama, one_row),
        (make_gpt2, one_row),
        (make_sliding, one_row),
        (make_mixtral, one_row),
        # attention of its own, a state that runs on from record to record, a second loss of all tokens
        (make_capped, learned_only),
        (make_mamba, learned_only),
        (lambda: make_mixtral(output_router_logits=True), learned_only),
        (leaking, as_it_is),
        (own_loss, as_it_is),
    ],
)
def test_a_model_gets_what_gives_its_own_loss(make: Callable[[], nn.Module], way: Callable[[Batch], Batch]) -> None:
    model = make()
    assert exact_for(model, 128, 64) is way
    assert model.training
    batch = padded(chats(7, 12, 5))
    if way is not as_it_is:
        assert_same(model.eval(), batch, exact_for(model, 128, 64)(batch))


def test_a_batch_too_large_for_one_row_keeps_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, model = padded(chats(7, 12, 5)), adapted(make_llama())
    monkeypatch.setattr("lorakit.trainers.condensed.LONGEST", 35)
    assert one_row(batch)["input_ids"].shape == (3, 12)
    assert_same(model, batch, one_row(batch))


def test_a_model_that_knows_places_alone_is_told_those(monkeypatch: pytest.MonkeyPatch) -> None:
    # as transformers had it before masks
    monkeypatch.setattr("lorakit.trainers.condensed.WAYS", (learned_places,))
    assert exact_for(make_llama(), 128, 64) is learned_places
    assert exact_for(own_loss(), 128, 64) is as_it_is


def test_models_of_few_positions_get_batches_whole() -> None:
    assert exact_for(make_llama(max_position_embeddings=8), 128, 8) is as_it_is


class Plain:
    """Stands for what watches a run, and sees nothing."""

    signal = 0

    def check_loss(self, loss: Tensor) -> None:
        pass


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_trainer_steps_as_on_whole_batches(llama_folder: Path, tmp_path: Path, accumulate: int) -> None:
    rows = [row.features for row in chats(7, 12, 5, 9, 14, 6, 11, 8)]
    results = []
    for condense in (None, one_row):
        model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
        lorakit.apply("adapt q_proj,v_proj rank 4", model)
        arguments: dict[str, Any] = {
            "model": model,
            "args": TrainingArguments(
                str(tmp_path), max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=accumulate,
                learning_rate=1e-2, disable_tqdm=True, report_to="none", save_strategy="no",
                include_num_input_tokens_seen="non_padding",
            ),
            "train_dataset": rows,
            "eval_dataset": rows,
            "data_collator": lambda some: padded([TokenRow(one["input_ids"], one["labels"], False) for one in some]),
        }  # fmt: skip
        plain: Any = Plain()
        trainer = WatchedTrainer(plain, plain, plain, condense, **arguments) if condense else Trainer(**arguments)
        with attention_by_record() as seen:
            loss = trainer.train().training_loss
            results.append((loss, trainer.evaluate()["eval_loss"], trainer.state.num_input_tokens_seen))
        assert bool(seen.calls) is (condense is one_row)
    assert results[0] == pytest.approx(results[1], rel=1e-5)
