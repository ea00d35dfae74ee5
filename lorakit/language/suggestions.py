"""Suggestions: the known word that a misspelled one was probably meant to be."""

from __future__ import annotations

from collections.abc import Iterable

# Longer words are no misspelled names, and of very many names some is always near: looking at all would take long
_LONGEST, _MOST = 60, 300


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that fewest edits lead to, if those are few for a word of this length."""
    if len(word) > _LONGEST:
        return None
    lower, limit = word.lower(), max(1, len(word) // 3)
    best, fewest = None, limit + 1
    candidates = (name for name in known if abs(len(name) - len(word)) <= limit and name != word)
    for name, _ in zip(candidates, range(_MOST), strict=False):
        edits = distance(lower, name.lower())
        if edits < fewest and (edits < len(word) or edits == 0):
            best, fewest = name, edits
    return best


def distance(one: str, other: str) -> int:
    """Return how many letters must be put in, left out, replaced or swapped with their neighbour to get from one word
    to the other."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        above, row_before, before = row, before, row
        row = [i]
        for j, wanted in enumerate(other, 1):
            edits = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                edits = min(edits, row_before[j - 2] + 1)
            row.append(edits)
    return row[-1]


def listed(names: Iterable[str], last: str = "or") -> str:
    """Return names as words: "`a`, `b` or `c`"."""
    quoted = [f"`{name}`" for name in names]
    if len(quoted) < 2:
        return "".join(quoted)
    return f"{', '.join(quoted[:-1])} {last} {quoted[-1]}"
