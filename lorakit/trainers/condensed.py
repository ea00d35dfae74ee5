"""A batch as its loss needs it: logits where a token is learned, no padding, and nothing behind what is learned last.

The model's own forward computes the loss, with its own loss function, from fewer logits and the labels that belong to
them. Whether it is the same loss for a model is measured before it trains: none is known by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorakit.data.tokens import IGNORED
from lorakit.huggingface.record_attention import attention_by_record

Batch = dict[str, Any]
Condense = Callable[[Batch], Batch]

# tokens of the two records that a model is tried on, the second of which is padded
TRIED = (16, 9)
# of those of each record, not learned
PROMPT = 2
# of what wrong logits differ by: rounding alone shifts them by a quarter of it after 30 layers in 16 bits
NEAR, NEAR_IN_HALVES = 0.01, 0.5
# of a loss, in units of its dtype's rounding
ROUNDINGS = 100
# tokens of a batch: transformers makes a mask of all of a row's tokens with each other
LONGEST = 8192


def as_it_is(batch: Batch) -> Batch:
    """Return the batch."""
    return batch


def learned_only(batch: Batch) -> Batch:
    """Return a batch (rows, tokens) that asks for logits where the next token is learned, those of all rows in turn."""
    targets = _targets(batch["labels"])
    learned = targets != IGNORED
    return {**batch, "logits_to_keep": learned, **_labels(targets[learned])}


def learned_places(batch: Batch) -> Batch:
    """Return a batch (rows, tokens) that asks for logits at the places where some row learns, as older models can."""
    targets = _targets(batch["labels"])
    places = (targets != IGNORED).any(0).nonzero().flatten()
    return {**batch, "logits_to_keep": places, **_labels(targets[:, places])}


def one_row(batch: Batch) -> Batch:
    """Return a batch (rows, tokens) as one row of its records, each up to the last token that one is learned from.

    Records are the rows, or what begins within them with a position of 0.
    """
    ids, labels = batch["input_ids"], batch["labels"]
    targets = _targets(labels).flatten()
    learned = targets != IGNORED
    if ids.numel() > LONGEST or not learned.any():
        return learned_places(batch)
    begins = torch.zeros_like(ids, dtype=torch.bool)
    begins[:, 0] = True
    if "position_ids" in batch:
        begins |= batch["position_ids"] == 0
    record = begins.flatten().cumsum(0) - 1
    places = torch.arange(ids.numel(), device=ids.device)
    last = torch.full((int(record[-1]) + 1,), -1, device=ids.device)
    last.scatter_reduce_(0, record[learned], places[learned], "amax")
    kept = places <= last[record]
    if "attention_mask" in batch:
        kept &= batch["attention_mask"].flatten().bool()
    lengths = torch.bincount(record[kept])
    lengths = lengths[lengths > 0]
    ends = functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(lengths.max())
    positions = torch.cat([torch.arange(length, device=ids.device) for length in lengths.tolist()])
    learned = learned[kept]
    return {
        "input_ids": ids.flatten()[kept].unsqueeze(0),
        "position_ids": positions.unsqueeze(0),
        # with a cache to fill, transformers does not look for the ends of records
        "use_cache": False,
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
        "logits_to_keep": learned.nonzero().flatten(),
        **_labels(targets[kept][learned].unsqueeze(0)),
    }


# by what they compute, the least first; the first is for CPUs
WAYS: tuple[Condense, ...] = (one_row, learned_only, learned_places)


def exact_for(model: nn.Module, vocabulary: int, limit: int, *, alone: bool = False) -> Condense:
    """Return the way of giving batches that computes least and with which a model's loss is still its own.

    On a CPU alone records are taken out of a batch: elsewhere many small products take longer than a large one. Nor are
    they where each is `alone` in its batch.
    """
    if limit < TRIED[0]:
        return as_it_is
    device = next(model.parameters()).device
    ways = WAYS if device.type == "cpu" and not alone else WAYS[1:]
    was_training = model.training
    model.eval()
    try:
        # a model may know none of the arguments, and trains as it is
        with torch.no_grad(), suppress(Exception):
            trial = _Trial.of(model, _tried(vocabulary, device))
            for way in ways:
                with suppress(Exception):
                    if trial.agrees(model, way):
                        return way
    finally:
        model.train(was_training)
    return as_it_is


def summed_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the cross-entropies in nats of what a batch learns, summed, whichever way it is given."""
    given = {name: value for name, value in batch.items() if name not in ("labels", "shift_labels")}
    targets = batch["shift_labels"] if "shift_labels" in batch else _targets(batch["labels"])
    logits = model(**{"use_cache": False, **given}).logits.flatten(end_dim=-2)
    return functional.cross_entropy(logits.float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")


@dataclass(frozen=True)
class _Trial:
    """What a model makes of a padded batch of two records: its loss, and the logits (learned tokens, vocabulary).

    `wrong_loss` and `wrong_logits` say how far those are off that come of other labels and of records that run on.
    """

    batch: Batch
    loss: Tensor
    logits: Tensor
    wrong_loss: float
    wrong_logits: float
    # such as what keeps experts evenly used, by all the tokens that there are
    has_other_loss: bool

    @classmethod
    def of(cls, model: nn.Module, batch: Batch) -> _Trial:
        output = model(**batch)
        logits = output.logits[_targets(batch["labels"]) != IGNORED]
        other = model(**{**batch, "labels": batch["labels"].clamp(max=0)}).loss
        row = one_row(batch)
        mixed = model(input_ids=row["input_ids"]).logits[0, row["logits_to_keep"]]
        return cls(
            batch, output.loss, logits, _off(other, output.loss), _off(mixed, logits),
            getattr(output, "aux_loss", None) is not None,
        )  # fmt: skip

    def agrees(self, model: nn.Module, way: Condense) -> bool:
        """Return whether a model's loss on the batch given so is the same."""
        with attention_by_record() as seen:
            output = model(**way(self.batch))
        logits = output.logits
        if way is learned_places:
            logits = logits[way(self.batch)["labels"] != IGNORED]
        logits = logits.view_as(self.logits)
        rounding = torch.finfo(logits.dtype).eps
        near = NEAR if logits.dtype == torch.float32 else NEAR_IN_HALVES
        off = _off(output.loss, self.loss)
        same = _off(logits, self.logits) <= near * self.wrong_logits and off <= near * self.wrong_loss
        same = same and off <= ROUNDINGS * rounding * abs(float(self.loss))
        if way is not one_row or not same:
            return same
        return bool(seen.calls) and not self.has_other_loss and self._are_apart(model, logits)

    def _are_apart(self, model: nn.Module, logits: Tensor) -> bool:
        """Return whether the second record stays as it is with another before it: to the last bit, in most models."""
        ids = self.batch["input_ids"].clone()
        ids[0] = ids[0].roll(1)
        with attention_by_record():
            others = model(**one_row({**self.batch, "input_ids": ids})).logits.view_as(logits)
        second = slice(TRIED[0] - PROMPT, None)
        return _off(others[second], logits[second]) <= NEAR * self.wrong_logits


def _off(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().mean())


def _tried(vocabulary: int, device: torch.device) -> Batch:
    """Return two records of random tokens, the second padded."""
    size = (len(TRIED), max(TRIED))
    ids = torch.randint(vocabulary, size, generator=torch.Generator().manual_seed(0))
    places = torch.arange(max(TRIED)).expand(size)
    inside = places < torch.tensor(TRIED).unsqueeze(1)
    labels = torch.where(inside & (places >= PROMPT), ids, IGNORED)
    made = {"input_ids": ids, "labels": labels, "attention_mask": inside.long()}
    return {name: tensor.to(device) for name, tensor in made.items()}


def _targets(labels: Tensor) -> Tensor:
    """Return of each token the one to be learned from it, the next; labels (rows, tokens)."""
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def _labels(targets: Tensor) -> Batch:
    # a loss function that is given these does not shift the labels, which are there for a loss to be computed at all
    return {"labels": targets, "shift_labels": targets}
