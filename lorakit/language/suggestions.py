"""Suggestions: the known word that a misspelled one was probably meant to be."""

from __future__ import annotations

from collections.abc import Iterable

# Longer words are no misspelled names, and comparing them takes time
_LONGEST = 60


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word nearest to this one, if any is near."""
    if len(word) > _LONGEST:
        return None
    by_lower = {name.lower(): name for name in known}
    exact = by_lower.get(word.lower())
    if exact is not None:
        return exact if exact != word else None
    import difflib

    found = difflib.get_close_matches(word.lower(), by_lower, 1, 0.6)
    return by_lower[found[0]] if found else None


def listed(names: Iterable[str], last: str = "or") -> str:
    """Return names as words: "`a`, `b` or `c`"."""
    quoted = [f"`{name}`" for name in names]
    if len(quoted) < 2:
        return "".join(quoted)
    return f"{', '.join(quoted[:-1])} {last} {quoted[-1]}"
