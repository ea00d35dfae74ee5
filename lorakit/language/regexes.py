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
        self._compiled: dict[str, Any] = {}

    def fits(self, words: str, name: str) -> bool:
        """Return whether a regex matches a whole name. Raises: RegexError, also where it takes too long."""
        if words not in self._compiled:
            self._compiled[words] = self._compile(words)
        compiled = self._compiled[words]
        if isinstance(compiled, re.Pattern):
            return compiled.fullmatch(name) is not None
        begun = time.thread_time()
        try:
            found = compiled.fullmatch(name, timeout=max(min(MATCH_SECONDS, self._left), 1e-3)) is not None
        except (TimeoutError, MemoryError):
            raise RegexError(
                "this regex takes too long: there are too many ways to share a name out in it"
            ) from None
        self._left -= time.thread_time() - begun
        if self._left <= 0:
            raise RegexError(f"this regex and those before it take more than {SECONDS:g} s for the names of this model")
        return found

    def _compile(self, words: str) -> Any:
        check_regex(words)
        whole = f"{self._start}({words})" if self._start else words
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if _REPEATING.search(words) is None:
                # nothing to try in several ways: `re` is linear in it, and quicker
                return re.compile(whole)
            import regex

            try:
                return regex.compile(whole)
            except (regex.error, OverflowError, RecursionError) as error:
                raise RegexError(f"this is no regex: {error}") from None
