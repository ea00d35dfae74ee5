"""Names of modules as PEFT takes them, and as targets of a spec.

A name selects every module whose path is it or ends with it behind a dot, in both. A key of `rank_pattern` and
`alpha_pattern` is a regex on the end of a path; most are such a name, escaped or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lorakit.language.statements import IndexRange, Segment, Target

# what every model has once at most, without anything that an adapter fits inside it
LEAVES = frozenset({
    "lm_head", "embed_out", "embed_tokens", "embed_in", "wte", "wpe", "word_embeddings", "score", "qa_outputs",
})  # fmt: skip
# those of them that `@linear` does not select: embeddings, and the heads of language models
NOT_LINEAR = LEAVES - {"score", "qa_outputs"}
# what bitsandbytes leaves as it is where it quantizes a model
UNQUANTIZED = LEAVES | {"classifier"}

_PLAIN = re.compile(r"\w(?:[\w-]*\w)?(?:\.\w(?:[\w-]*\w)?)*", re.ASCII)
_ESCAPE = re.compile(r"\\([^\w\s])")
# the beginning of a path, up to a name
ANYWHERE = r"(?:.*\.)?"


def is_plain(name: str) -> bool:
    """Return whether a name can stand in a spec as it is, and means the same there."""
    return _PLAIN.fullmatch(name) is not None


def plain_key(key: str) -> str | None:
    """Return the name that the key of a pattern spells, its dots being dots; None where it is more than a name."""
    name = _ESCAPE.sub(r"\1", key.removesuffix("$"))
    return name if is_plain(name) else None


def covers(one: str, other: str) -> bool:
    """Return whether a name selects all that another one selects."""
    return one == other or other.endswith(f".{one}")


def ends(name: str) -> tuple[str, ...]:
    """Return the names that cover a name: itself, and what is left of it behind each dot."""
    segments = name.split(".")
    return tuple(".".join(segments[start:]) for start in range(len(segments)))


def target(name: str) -> Target:
    """Return the target that selects what a name selects."""
    if not is_plain(name):
        return Target(regex=f"{ANYWHERE}{re.escape(name)}")
    return Target(tuple(map(Segment, name.split("."))))


def ranges(indices: Iterable[int]) -> tuple[IndexRange, ...]:
    """Return indices as ranges, those that follow each other as one."""
    found: list[IndexRange] = []
    for index in sorted(set(indices)):
        if found and found[-1].last == index - 1:
            found[-1] = IndexRange(found[-1].first, index)
        else:
            found.append(IndexRange(index, index))
    return tuple(found)


def one_of(expressions: Sequence[str]) -> str:
    """Return the regex that matches what any of these does."""
    return expressions[0] if len(expressions) == 1 and is_plain(expressions[0]) else f"(?:{'|'.join(expressions)})"
