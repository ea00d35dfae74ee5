"""The loss of a causal language model on a text: the mean cross-entropy of the tokens that `train` would learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorakit.errors import ModelError
from lorakit.trainers.text_data import IGNORED, Tokenized, check_causal, read_records, read_tokenizer, tokenize

Row = dict[str, list[int]]
Progress = Callable[[Sequence[Row]], Iterable[Row]]


@dataclass(frozen=True, slots=True)
class LossText:
    """A text tokenized for one model, with rows of at most `limit` tokens."""

    text: str
    limit: int
    tokenized: Tokenized


def read_loss_text(
    path: Path, structure: nn.Module, reference: str, *, tokens: int, rows: int = 0, trust_remote_code: bool = False
) -> LossText:
    """Return a text as rows of at most so many tokens, as `train` reads it; the first `rows` records, or all if 0.

    Raises: DataError, ModelError if the model is no causal language model or its tokenizer is another model's.
    """
    model: Any = structure
    check_causal(model, "the loss on a text")
    records = read_records(path)
    tokenizer = read_tokenizer(reference, trust_remote_code)
    limit = min(tokens, getattr(model.config, "max_position_embeddings", None) or tokens)
    tokenized = tokenize(records[:rows] if rows else records, tokenizer, limit)
    known = model.get_input_embeddings().weight.shape[0]
    largest = max(chain.from_iterable(row["input_ids"] for row in tokenized.rows))
    if largest >= known:
        raise ModelError(
            f"the tokenizer of {reference} gives the token {largest}, and the model knows {known}: "
            "they are not of one model"
        )
    return LossText(str(path), limit, tokenized)


def mean_loss(model: nn.Module, text: LossText, progress: Progress = iter) -> float:
    """Return the mean cross-entropy per token, in nats, over the whole text. Raises: ModelError if it is not finite."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    total = 0.0
    # a row at a time: no padding, and the logits of one row in memory
    with torch.inference_mode():
        for row in progress(text.tokenized.rows):
            ids = torch.tensor([row["input_ids"]], device=device)
            labels = torch.tensor(row["labels"], device=device)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            total += float(
                nn.functional.cross_entropy(logits.float(), labels[1:], ignore_index=IGNORED, reduction="sum")
            )
    model.train(was_training)
    mean = total / text.tokenized.trained_tokens
    if not math.isfinite(mean):
        raise ModelError(f"the loss on {text.text} is not finite")
    return mean
