"""Text to train a language model on: from a file to token ids and labels."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.errors import DataError, ModelError
from lorakit.trainers.turns import turns

# what the loss functions of transformers leave out
IGNORED = -100
FORMS = '{"messages": [{"role": …, "content": …}, …]}, {"prompt": …, "completion": …} or {"text": …}'

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Rows of token ids with labels, as transformers' collators take them; `cut` counts rows cut to the limit."""

    rows: tuple[dict[str, list[int]], ...]
    cut: int
    trained_tokens: int


def check_causal(model: Any, what: str) -> None:
    """Raise ModelError unless a model predicts each next token of what it reads: labels and inputs are one row."""
    generates = hasattr(model, "can_generate") and model.can_generate()
    if not generates or getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(f"{what} takes a causal language model, and {type(model).__name__} is none")


def read_records(path: Path) -> list[Record]:
    """Return the records of a .jsonl file, or the paragraphs of any other text file as {"text": …}.

    Raises: DataError naming the line that does not fit.
    """
    try:
        if not path.is_file():
            raise DataError(f"no such data file: {path}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}") from error
    if path.suffix == ".jsonl":
        records = [_record(line, f"{path}:{number}") for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    elif path.suffix in (".json", ".csv", ".parquet", ".arrow"):
        raise DataError(f"{path}: lorakit reads .jsonl, one record a line, or plain text; a record is {FORMS}")
    else:
        records = [{"text": paragraph.strip()} for paragraph in text.split("\n\n") if paragraph.strip()]
    if not records:
        raise DataError(f"{path} holds no text")
    return records


def read_tokenizer(model: str, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of a model folder or hub id, with something to pad with. Raises: ModelError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"{model} has no tokenizer that transformers can read: {str(error).partition(chr(10))[0]}"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def split_records(records: Sequence[Record], held_out: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Return (train, held out) records, drawn by the seed; at least one is held out unless the share is 0."""
    order = list(records)
    random.Random(seed).shuffle(order)
    count = max(1, round(len(order) * held_out)) if held_out > 0 else 0
    if len(order) - count < 1:
        raise DataError(
            f"{len(order)} records are too few to hold {held_out:.0%} of them out; give more, or --held-out 0"
        )
    return order[count:], order[:count]


def tokenize(records: Sequence[Record], tokenizer: Any, limit: int) -> Tokenized:
    """Return records as token ids of at most `limit`; only what the assistant says, or a completion, is learned."""
    rows, cut, trained = [], 0, 0
    for record in records:
        pieces = list(_pieces(record, tokenizer))
        ids = [token for tokens, _ in pieces for token in tokens]
        labels = [token if learned else IGNORED for tokens, learned in pieces for token in tokens]
        cut += len(ids) > limit
        ids, labels = ids[:limit], labels[:limit]
        # the first token of a row is never predicted
        learned_here = sum(label != IGNORED for label in labels[1:])
        if learned_here:
            trained += learned_here
            rows.append({"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)})
    if not rows:
        raise DataError(f"no row has anything to learn within {limit} tokens; raise --tokens")
    return Tokenized(tuple(rows), cut, trained)


def _record(line: str, place: str) -> Record:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: no JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(record, dict):
        raise DataError(f"{place}: a record is {FORMS}")
    messages = record.get("messages")
    if isinstance(messages, list) and messages:
        if all(isinstance(one, dict) and isinstance(one.get("content"), str) and "role" in one for one in messages):
            return record
    elif isinstance(record.get("text"), str) or all(
        isinstance(record.get(key), str) for key in ("prompt", "completion")
    ):
        return record
    raise DataError(f"{place}: a record is {FORMS}; this one has {', '.join(map(repr, record)) or 'nothing'}")


def _pieces(record: Record, tokenizer: Any) -> Iterator[tuple[list[int], bool]]:
    """Yield (token ids, whether they are learned) in the order of the text."""
    if "messages" in record:
        yield from turns(record, tokenizer)
    elif "text" in record:
        yield [*tokenizer(record["text"])["input_ids"], *_end(tokenizer)], True
    else:
        yield tokenizer(record["prompt"])["input_ids"], False
        yield [*tokenizer(record["completion"], add_special_tokens=False)["input_ids"], *_end(tokenizer)], True


def _end(tokenizer: Any) -> list[int]:
    return [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
