"""Examples as rows of token ids, with what is learned of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from lorakit.data.examples import Chat, Completion, Example, LeftOut, Text
from lorakit.data.template import Template
from lorakit.data.turns import Encoded, encode_chat
from lorakit.errors import DataError, ModelError
from lorakit.quoting import shown

# what the loss functions of transformers leave out
IGNORED = -100

Tracked: TypeAlias = Callable[[Sequence[Example]], Iterable[Example]]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Token ids with labels, of which those that are not learned are IGNORED, and whether the row was cut."""

    input_ids: list[int]
    labels: list[int]
    cut: bool

    @property
    def learned(self) -> int:
        """Tokens that are learned; the first of a row is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])

    @property
    def features(self) -> dict[str, list[int]]:
        """The row as transformers' collators take it."""
        return {"input_ids": self.input_ids, "labels": self.labels, "attention_mask": [1] * len(self.input_ids)}


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Rows in the order of their examples, and the examples in which nothing is learned."""

    rows: tuple[TokenRow, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def cut(self) -> int:
        """How many rows were cut to the limit."""
        return sum(row.cut for row in self.rows)

    @property
    def trained_tokens(self) -> int:
        """How many tokens are learned in a pass over the rows."""
        return sum(row.learned for row in self.rows)


def tokenize(
    examples: Sequence[Example], tokenizer: Any, limit: int, vocabulary: int | None = None, tracked: Tracked = iter
) -> Tokenized:
    """Return examples as rows of at most `limit` tokens; only what the assistant says, or a completion, is learned.

    Raises: DataError naming the example that the tokenizer or its template does not take, ModelError where it gives a
    token beyond the `vocabulary` that the model has.
    """
    rows: list[TokenRow] = []
    left_out: list[LeftOut] = []
    encoder = _Encoder(tokenizer)
    for example in tracked(examples):
        try:
            ids, learned = encoder.encode(example)
        except DataError as error:
            raise DataError(f"{example.place}: {error}") from error
        labels = [token if one else IGNORED for token, one in zip(ids, learned, strict=True)]
        row = TokenRow(ids[:limit], labels[:limit], len(ids) > limit)
        if vocabulary is not None and row.input_ids and max(row.input_ids) >= vocabulary:
            _refuse(max(row.input_ids), vocabulary, example.place, tokenizer)
        if row.learned:
            rows.append(row)
        else:
            reason = f"with nothing to learn within {limit} tokens" if any(learned[1:]) else "with no token to learn"
            left_out.append(LeftOut(example.place, reason))
    return Tokenized(tuple(rows), tuple(left_out))


def split(rows: Sequence[TokenRow], held_out: float, seed: int) -> tuple[list[TokenRow], list[TokenRow]]:
    """Return (train, held out) rows, drawn by the seed; at least one is held out unless the share is 0."""
    order = list(rows)
    random.Random(seed).shuffle(order)
    count = max(1, round(len(order) * held_out)) if held_out > 0 else 0
    if len(order) - count < 1:
        raise DataError(
            f"{len(order)} records are too few to hold {held_out:.0%} of them out; give more, or --held-out 0"
        )
    return order[count:], order[:count]


class _Encoder:
    """Token ids of examples of every kind, by one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._template: Template | None = None

    def encode(self, example: Example) -> Encoded:
        """Return token ids in the order of the text, and of each whether it is learned. Raises: DataError."""
        match example:
            case Text(_, text):
                ids = self._ended(self._ids(text))
                return ids, [True] * len(ids)
            case Completion():
                return self._completion(example)
            case Chat(plain=Completion() as plain) if not getattr(self._tokenizer, "chat_template", None):
                return self._completion(plain)
            case Chat():
                self._template = self._template or Template(self._tokenizer)
                return encode_chat(example, self._template)

    def _completion(self, example: Completion) -> Encoded:
        """Return the tokens of prompt and completion as one text, unless a token would lie in both.

        A prompt that ends within a token of the whole, as with a space, is what the model will be asked: it stays as
        it is, and the completion is tokenized apart.
        """
        before = self._ids(example.prompt)
        whole = self._ids(example.prompt + example.completion)
        if whole[: len(before)] != before:
            whole = before + self._tokenizer(example.completion, add_special_tokens=False)["input_ids"]
        ids = self._ended(whole)
        return ids, [place >= len(before) for place in range(len(ids))]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids

    def _ended(self, ids: list[int]) -> list[int]:
        end = self._tokenizer.eos_token_id
        return ids if end is None or ids[-1:] == [end] else [*ids, end]


def _refuse(token: int, vocabulary: int, place: str, tokenizer: Any) -> None:
    name = shown(tokenizer.convert_ids_to_tokens(token))
    raise ModelError(
        f"{place}: the tokenizer gives the token {token} ({name}), and the model knows {vocabulary}: they are not of "
        "one model, or tokens were added for which the model has no rows"
    )
