"""Rows padded to one of a few lengths: what comes of the loss, and which models need no mask for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from helpers import make_llama
from lorakit.stepping.losses import OwnLoss
from lorakit.stepping.padding import Padding, length_for


def test_lengths_are_few_and_padding_is_little() -> None:
    lengths = [length_for(tokens) for tokens in range(1, 8193)]
    assert len(set(lengths)) == 8 * 3 + 16 and lengths == sorted(lengths)
    for tokens, length in enumerate(lengths, 1):
        assert length >= tokens and length - tokens < max(64, tokens / 8)


def rows(mask: list[list[int]]) -> dict[str, Any]:
    kept = torch.tensor(mask)
    ids = torch.randint(1, 100, kept.shape, generator=torch.Generator().manual_seed(0)) * kept
    return {"input_ids": ids, "attention_mask": kept, "labels": torch.where(kept > 0, ids, -100)}


ENDS = [[1] * 20, [1] * 12 + [0] * 8]


def test_a_causal_model_needs_no_mask_where_rows_end_in_padding() -> None:
    model = make_llama().eval()
    padding = Padding(model, OwnLoss(model))
    batch = rows(ENDS)
    padded = padding.padded(batch)
    assert padded.keys() == {"input_ids", "labels"} and padded["input_ids"].shape == (2, 64)
    assert float(model(**padded).loss) == pytest.approx(float(model(**batch).loss), rel=1e-6)
    # on the left the mask tells where rows begin
    left = rows([[0] * 4 + [1] * 16, [1] * 20])
    padded = padding.padded(left)
    assert padded["attention_mask"][:, 20:].sum() == 0
    assert float(model(**padded).loss) == pytest.approx(float(model(**left).loss), rel=1e-6)


def test_a_model_that_looks_ahead_keeps_its_mask() -> None:
    torch.manual_seed(0)
    model: Any = BertForMaskedLM(
        BertConfig(
            vocab_size=100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip
    batch = rows(ENDS)
    padded = Padding(model, OwnLoss(model)).padded(batch)
    assert padded["attention_mask"].sum() == 32
    assert float(model(**padded).loss) == pytest.approx(float(model(**batch).loss), rel=1e-6)


def test_what_is_no_text_stays_as_it_is() -> None:
    model = make_llama()
    padding = Padding(model, OwnLoss(model))
    pair = (torch.ones(2, 3), torch.ones(2))
    assert padding.padded(pair) is pair
    with_positions = {**rows(ENDS), "position_ids": torch.arange(20).expand(2, 20)}
    assert padding.padded(with_positions) is with_positions
