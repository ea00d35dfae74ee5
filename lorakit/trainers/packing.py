"""Several records in one row, which see each other as little as rows of their own do.

Positions begin anew with every record, and transformers makes of that a mask of blocks (masking_utils) or, with flash
attention, sequences of their own. Whether a model heeds it is measured before it trains.
Source: Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination", arXiv:2107.02027.
"""

from __future__ import annotations

import inspect
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.data.tokens import IGNORED, TokenRow
from lorakit.errors import ModelError

# tokens of each of the two records that a model is tried on
TRIED = 16
# of what a record shifts by when it sees the other: rounding stays far below
TOLERANCE = 0.1


def packed(rows: Sequence[TokenRow], limit: int) -> list[list[TokenRow]]:
    """Return rows as packs of at most `limit` tokens, each row in the fullest pack that has room (best fit)."""
    packs: list[list[TokenRow]] = []
    # room left and number of every pack, ascending
    open_: list[tuple[int, int]] = []
    for row in sorted(rows, key=lambda row: -len(row.input_ids)):
        size = len(row.input_ids)
        at = bisect_left(open_, (size, -1))
        if at < len(open_):
            room, number = open_.pop(at)
        else:
            room, number = limit, len(packs)
            packs.append([])
        packs[number].append(row)
        left = (room - size, number)
        open_.insert(bisect_left(open_, left), left)
    return packs


def features(pack: Sequence[TokenRow]) -> dict[str, list[int]]:
    """Return a pack as one row; the first token of a record is not to be predicted from the record before it."""
    made: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
    for row in pack:
        made["input_ids"] += row.input_ids
        made["labels"] += [IGNORED, *row.labels[1:]]
        made["position_ids"] += range(len(row.input_ids))
    return made


def collate(rows: Iterable[dict[str, list[int]]], pad: int) -> dict[str, Tensor]:
    """Return packs as one batch, filled up with what is a record of its own, learned by nobody."""
    rows = list(rows)
    longest = max(len(row["input_ids"]) for row in rows)

    def batch(name: str, fill: Any) -> Tensor:
        return torch.tensor([row[name] + fill(longest - len(row[name])) for row in rows])

    # no attention mask: transformers takes positions for the ends of records only where there is none
    return {
        "input_ids": batch("input_ids", lambda count: [pad] * count),
        "labels": batch("labels", lambda count: [IGNORED] * count),
        "position_ids": batch("position_ids", lambda count: list(range(count))),
    }


def check_signature(model: nn.Module) -> None:
    """Raise ModelError for a model that is not told positions: it cannot know where a record ends."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise ModelError(f"--pack: {type(model).__name__} takes no position_ids, and would mix the records of a row")


def check_apart(model: nn.Module, rows: Sequence[TokenRow], pad: int, batch: int) -> None:
    """Try a model on two records in one row, in a batch as it will train on them, against the second one alone.

    Raises: ModelError naming the model if the second one sees the first.
    """
    longest = sorted(rows, key=lambda row: -len(row.input_ids))[:2]
    first, second = (row.input_ids[:TRIED] for row in (longest[0], longest[-1]))
    pair = {"input_ids": first + second, "position_ids": [*range(len(first)), *range(len(second))]}
    run_on = {**pair, "position_ids": list(range(len(first) + len(second)))}
    alone = {"input_ids": second, "position_ids": list(range(len(second)))}
    was_training, had_cache = model.training, getattr(model.config, "use_cache", None)
    model.eval()
    # as in training: a cache keeps transformers from looking for the ends of records
    model.config.use_cache = False  # type: ignore[union-attr]
    try:
        logits = [_logits(model, row, pad, min(batch, 2))[-len(second) :] for row in (pair, run_on, alone)]
    finally:
        model.train(was_training)
        model.config.use_cache = had_cache  # type: ignore[union-attr]
    apart, mixed = (float((one - logits[2]).abs().mean()) for one in logits[:2])
    if apart > TOLERANCE * mixed:
        raise ModelError(
            f"--pack: {type(model).__name__} lets the records of a row see each other: the logits of one shift by "
            f"{apart:.3g} for what stands before it ({mixed:.3g} where nothing parts them); train without --pack"
        )


def _logits(model: nn.Module, row: dict[str, list[int]], pad: int, batch: int) -> Tensor:
    device = next(model.parameters()).device
    made = collate([{**row, "labels": row["input_ids"]}] * batch, pad)
    del made["labels"]
    with torch.no_grad():
        logits: Tensor = model(**{name: value.to(device) for name, value in made.items()}).logits[-1]
    return logits.float()
