"""Rows of text padded to one of a few lengths, so that batches come in few forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorakit.data.tokens import IGNORED
from lorakit.stepping.batches import WHOLE
from lorakit.stepping.before import Before
from lorakit.stepping.losses import Learning, OwnLoss

# what can be padded, and with what
FILLING: Mapping[str, int] = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
# lengths between a power of two and the next: padding is an eighth of a row at most, and from 256 tokens on
STEPS = 8
SHORTEST = 64


class Padding:
    """Pads the rows of one model's batches at their ends, where its loss comes to the same."""

    def __init__(self, model: nn.Module, learning: Learning) -> None:
        self._model = model
        self._learning = learning
        # whether what comes later in a row is never seen, so that padding at the end needs no mask
        self._looks_back: bool | None = None

    def padded(self, batch: Any) -> Any:
        """Return a batch of a model's arguments with longer rows and, where it is not needed, without a mask.

        Any other batch is returned as it is.
        """
        if not isinstance(batch, Mapping) or not isinstance(self._learning, OwnLoss) or not _is_text(batch):
            return batch
        length = batch["input_ids"].shape[1]
        more = length_for(length) - length
        rows = {name: value for name, value in batch.items() if name in FILLING}
        mask = rows.setdefault("attention_mask", torch.ones_like(rows["input_ids"]))
        made = {name: functional.pad(value, (0, more), value=FILLING[name]) for name, value in rows.items()}
        if _ends_padded(mask) and self._needs_no_mask(made):
            del made["attention_mask"]
        return {**batch, **made} if "attention_mask" in made else {**_without_mask(batch), **made}

    def _needs_no_mask(self, batch: Mapping[str, Tensor]) -> bool:
        if self._looks_back is None:
            self._looks_back = self._is_blind(batch)
        return self._looks_back

    @torch.no_grad()
    def _is_blind(self, batch: Mapping[str, Tensor]) -> bool:
        """Return whether the loss is the same to the last bit whatever tokens rows end with, none of them learned."""
        labels = functional.pad(batch["labels"], (0, SHORTEST), value=IGNORED)
        ids = functional.pad(batch["input_ids"], (0, SHORTEST))
        losses = []
        for ending in (ids[:, :SHORTEST], ids[:, :SHORTEST].flip(0, 1) + 1):
            before = Before.of(self._model)
            tokens = torch.cat([ids[:, :-SHORTEST], ending.clamp(max=int(ids.max()))], 1)
            losses.append(float(self._learning.loss(self._model, {"input_ids": tokens, "labels": labels})))
            before.restore()
        return losses[0] == losses[1]


def length_for(tokens: int) -> int:
    """Return the length that rows of so many tokens are padded to."""
    step = max(SHORTEST, (1 << max(tokens - 1, 1).bit_length()) // (2 * STEPS))
    return -(-tokens // step) * step


def _is_text(batch: Mapping[str, Any]) -> bool:
    rows = [value for name, value in batch.items() if name in FILLING]
    return (
        {"input_ids", "labels"} <= batch.keys() <= FILLING.keys() | WHOLE
        and len({value.shape for value in rows}) == 1
        and rows[0].dim() == 2
    )


def _without_mask(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "attention_mask"}


def _ends_padded(mask: Tensor) -> bool:
    """Return whether a mask (rows, tokens) leaves out tokens at the ends of rows alone."""
    return not bool((mask[:, 1:] > mask[:, :-1]).any())
