"""What can be learned from one record, and a record from which nothing can."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from lorakit.errors import DataError

Message: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Text:
    """A text that is learned whole."""

    place: str
    text: str


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt, which is read, and what is learned to follow it."""

    place: str
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages as a chat template takes them; `learned` says of each whether it is.

    The first `prompt` of them were given apart, as a prompt. `plain` is the same for a model that knows no chats, where
    the record's form has such a way.
    """

    place: str
    messages: tuple[Message, ...]
    learned: tuple[bool, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    prompt: int = 0
    plain: Completion | None = None


Example: TypeAlias = Text | Completion | Chat


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A record from which nothing is learned, and why."""

    place: str
    reason: str


def reasons(left_out: Sequence[LeftOut]) -> str:
    """Return how many records were left out for which reason, the commonest first."""
    counts = Counter(one.reason for one in left_out)
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())


def require_kept(data: str, total: int, left_out: Sequence[LeftOut], most: float) -> None:
    """Raise DataError where all of the records were left out, or more than the share `most` of them."""
    if len(left_out) < total and len(left_out) <= most * total:
        return
    first = {one.reason: one.place for one in reversed(left_out)}
    counts = Counter(one.reason for one in left_out)
    lines = [f"  {count:,}: {reason} (first: {first[reason]})" for reason, count in counts.most_common()]
    help_ = "--columns says which column is what, --tokens how long a row may be"
    if len(left_out) < total:
        help_ += f"; if this is meant, --max-left-out {min(1.0, len(left_out) / total + 0.005):.2f}"
    raise DataError(
        "\n".join([f"{data}: {len(left_out):,} of {total:,} records have nothing to learn", *lines, f"help: {help_}"])
    )
