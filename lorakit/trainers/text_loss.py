"""The loss of a causal language model on a text: the mean cross-entropy of the tokens that `train` would learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lorakit.data.examples import require_kept
from lorakit.data.language_model import check_causal, read_tokenizer, row_limit, vocabulary_of
from lorakit.data.source import read_data
from lorakit.data.tokens import Tokenized, TokenRow, tokenize
from lorakit.errors import ModelError
from lorakit.trainers.condensed import exact_for, summed_loss

if TYPE_CHECKING:
    from lorakit.hooks.manager import Plugins

Progress = Callable[[Sequence[TokenRow]], Iterable[TokenRow]]


@dataclass(frozen=True, slots=True)
class LossText:
    """A text tokenized for one model, with rows of at most `limit` tokens."""

    text: str
    limit: int
    tokenized: Tokenized


def read_loss_text(
    path: Path,
    structure: nn.Module,
    reference: str,
    plugins: Plugins,
    *,
    tokens: int,
    rows: int = 0,
    trust_remote_code: bool = False,
) -> LossText:
    """Return a text as rows of at most so many tokens, as `train` reads it; the first `rows` records, or all if 0.

    Raises: DataError, ModelError if the model is no causal language model or its tokenizer is another model's.
    """
    model: Any = structure
    check_causal(model, "the loss on a text")
    data = read_data(path, plugins)
    examples = data.examples[:rows] if rows else data.examples
    tokenizer = read_tokenizer(reference, trust_remote_code)
    limit = row_limit(model, tokens)
    tokenized = tokenize(examples, tokenizer, limit, vocabulary_of(model))
    require_kept(data.name, len(examples), tokenized.left_out, data.reading.max_left_out)
    return LossText(str(path), limit, tokenized)


def mean_loss(model: nn.Module, text: LossText, progress: Progress = iter) -> float:
    """Return the mean cross-entropy per token, in nats, over the whole text. Raises: ModelError if it is not finite."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    condense = exact_for(model, vocabulary_of(model), text.limit, alone=True)
    total = 0.0
    # a row at a time: no padding, and the logits of what one row learns in memory
    with torch.inference_mode():
        for row in progress(text.tokenized.rows):
            features = {"input_ids": row.input_ids, "labels": row.labels}
            batch = {name: torch.tensor([value], device=device) for name, value in features.items()}
            total += float(summed_loss(model, condense(batch)))
    model.train(was_training)
    mean = total / text.tokenized.trained_tokens
    if not math.isfinite(mean):
        raise ModelError(f"the loss on {text.text} is not finite")
    return mean
