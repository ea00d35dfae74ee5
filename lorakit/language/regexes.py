"""Regexes that anyone may have written: Python's syntax, and a bound on the time that matching takes.

`re` cannot be interrupted, and backtracks for ever on `(a+)+!`. What can repeat is therefore matched by the `regex`
package, which transformers needs too and which takes a timeout; its import waits until there is something to match.
"""

from __future__ import annotations

import math
import re
import time
import warnings
from typing import Any

from lorakit.quoting import shown

MAX_LENGTH = 1_000
# `regex` lays every repetition out when it compiles: this many fill no memory
MAX_REPETITIONS = 10_000
# processor time of one match, and of all that one spec or one folder asks for
MATCH_SECONDS, SECONDS = 0.25, 5.0

_COUNT = re.compile(r"\{([0-9]*)(?:,([0-9]*))?\}")
_REPEATING = re.compile(r"[*+?{(|]")


class RegexError(ValueError):
    """A regex that is none, is too large, or takes too long; `position` is where in its words, if anywhere."""

    def __init__(self, message: str, position: int | None = None) -> None:
        super().__init__(message)
        self.message, self.position = message, position


def check_regex(words: str) -> None:
    """Raise RegexError for what `re` does not compile, and for what is too large to match."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(words)
    except (re.error, OverflowError, RecursionError) as error:
        reason = getattr(error, "msg", None) or "it is too large"
        raise RegexError(f"this is no regex: {reason}", getattr(error, "pos", None)) from None
    if len(words) > MAX_LENGTH:
        raise RegexError(f"this regex has {len(words):,} characters; at most {MAX_LENGTH:,} are read")
    counts = (max(int(number or 1) for number in pair) for pair in _COUNT.findall(words))
    if math.prod(max(count, 1) for count in counts) > MAX_REPETITIONS:
        raise RegexError(f"the counts of this regex multiply to more than {MAX_REPETITIONS:,} repetitions")


class Matcher:
    """Matches regexes against names, all of them together within a bound of processor time.

    `start` is a regex that stands before every one of them.
    """

    def __init__(self, start: str = "") -> None:
        self._start = start
        self._left = SECONDS
        self._compiled: dict[str, tuple[Any, bool]] = {}

    def fits(self, words: str, name: str) -> bool:
        """Return whether a regex matches a whole name. Raises: RegexError, also where it takes too long."""
        begun = self.begin()
        if words not in self._compiled:
            self._compiled[words] = self._compile(words)
        compiled, is_limited = self._compiled[words]
        limit = {"timeout": max(min(MATCH_SECONDS, self._left), 1e-3)} if is_limited else {}
        try:
            found = compiled.fullmatch(name, **limit)
        except (TimeoutError, MemoryError):
            reason = "there are too many ways to share a name out in it"
            raise RegexError(f"the regex {shown(words)} takes too long: {reason}") from None
        self.charge(begun)
        return found is not None

    @staticmethod
    def begin() -> float:
        """Return the processor time at which work begins that `charge` then counts."""
        return time.thread_time()

    def charge(self, begun: float) -> None:
        """Count what was spent since. Raises: RegexError where it is more than there was."""
        self._left -= time.thread_time() - begun
        if self._left <= 0:
            raise RegexError(f"these patterns take more than {SECONDS:g} s for the names of this model")

    def _compile(self, words: str) -> tuple[Any, bool]:
        """Return what matches, and whether it needs a limit of time."""
        check_regex(words)
        whole = f"{self._start}({words})" if self._start else words
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if _REPEATING.search(words) is None:
                # nothing to try in several ways: `re` is linear in it, and quicker
                return re.compile(whole), False
            import regex

            try:
                return regex.compile(whole), True
            except (regex.error, OverflowError, RecursionError) as error:
                raise RegexError(f"this is no regex: {error}") from None
