"""Targets: words to selectors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

from lorakit.diagnostics import Code
from lorakit.language.names import Scope
from lorakit.language.place import Extent, Place, Words
from lorakit.language.regexes import RegexError, check_regex
from lorakit.language.statements import IndexRange, Segment, Target
from lorakit.language.suggestions import listed
from lorakit.language.syntax import RangeNode, Word

# Lists of lists grow fast; this many selectors are more than any model has modules by hand
MAX_TARGETS = 10_000
# what others call all linear layers
ALL_LINEAR = ("all-linear", "all_linear")

_Item = TypeVar("_Item")

_SEGMENT = re.compile(r"([@:]?[\w*-]+)(?:\[([^\]]*)\])?")
_RANGE = re.compile(r"(-?[0-9]+)(?:\s*\.\.\s*(-?[0-9]+))?")


def read_targets(words: Iterable[Word], scope: Scope, place: Place) -> tuple[Target, ...] | None:
    """Return the targets of a list, those of `let` lists in the place of their names; None where one is at fault."""
    targets: list[Target | None] = []
    for word in words:
        definition = scope.definitions.get(word)
        if definition is not None and isinstance(definition.value, tuple):
            scope.used.add(str(word))
            targets.extend(definition.value)
            if len(targets) > MAX_TARGETS:
                place.report(Code.LIMIT, f"this list has more than {MAX_TARGETS} targets", word)
                return None
        elif definition is None and word in scope.later_lists:
            note = f"help: for a module of that name write `**.{word}`"
            place.report(Code.UNKNOWN_NAME, f"`{word}` is used above its definition", word, None, note)
            targets.append(None)
        else:
            at_fault = definition is not None and definition.value is None
            targets.append(None if at_fault else _target(word, scope, place))
    return _all(targets)


def read_ranges(nodes: Iterable[RangeNode], place: Place) -> tuple[IndexRange, ...] | None:
    """Return the ranges of a `layers` clause, or None where one is at fault."""
    return _all([_range(node.first, node.last, node, place) for node in nodes])


def _all(items: Sequence[_Item | None]) -> tuple[_Item, ...] | None:
    sound = tuple(item for item in items if item is not None)
    return sound if len(sound) == len(items) else None


def _target(word: Word, scope: Scope, place: Place) -> Target | None:
    """Return the target that a word spells, or None where its fault has been reported."""
    if word.startswith("/"):
        return Target(regex=word[1:-1], span=place.span(word)) if _is_regex(word, place) else None
    if word in ALL_LINEAR:
        note = f"help: write `@linear`, every linear layer but the output head; for a module of that name `**.{word}`"
        place.report(Code.BAD_TARGET, f"`{word}` is no target", word, None, note)
        return None
    *path, last = _SEGMENT.finditer(word)
    kind = last[1][0] if last[1][0] in "@:" else ""
    segments = _all([_segment(match, word.start, place) for match in (path if kind else (*path, last))])
    role, class_name = (last[1][1:] if kind == sign else None for sign in "@:")
    if role is not None and role not in scope.plugins.roles:
        if not scope.lacks_plugins:
            near = place.nearest(role, scope.plugins.roles)
            roles = listed((f"@{role}" for role in scope.plugins.roles), "and")
            notes = (*(() if near else (f"the roles are {roles}",)), *scope.plugins.absence("role", role))
            words = Extent(word.end - len(role), word.end)
            place.report(Code.UNKNOWN_ROLE, f"there is no role `@{role}`", words, near, *notes)
        return None
    return Target(segments, role, class_name, span=place.span(word)) if segments is not None else None


def _segment(match: re.Match[str], start: int, place: Place) -> Segment | None:
    name, indices = match[1], match[2]
    if "**" in name and (name != "**" or indices is not None):
        message = "`**` stands for whole segments: `a.**.b`; a part of a segment is `*`"
        if name == "**":
            message = "`**` is no numbered container, so it takes no indices"
        place.report(Code.BAD_TARGET, message, Extent(start + match.start(1), start + match.end(1)))
        return None
    found = _RANGE.finditer(indices or "")
    begin = start + match.start(2)
    ranges = _all([_range(r[1], r[2] or r[1], Extent(begin + r.start(), begin + r.end()), place) for r in found])
    return Segment(name, ranges) if ranges is not None else None


def _range(first: str, last: str, words: Words, place: Place) -> IndexRange | None:
    if max(len(first), len(last)) > 9:
        place.report(Code.LIMIT, "an index has at most eight digits", words)
        return None
    low, high = int(first), int(last)
    # with ends counted from different sides only a model can tell which comes first
    if low > high and (low < 0) == (high < 0):
        message = f"the range `{low}..{high}` ends before it begins"
        place.report(Code.REVERSED_RANGE, message, words, None, f"help: write `{high}..{low}`")
        return None
    return IndexRange(low, high, span=place.span(words))


def _is_regex(word: Word, place: Place) -> bool:
    words = word[1:-1]
    try:
        check_regex(words)
    except RegexError as error:
        start = word.start + 1 + min(error.position or 0, len(words))
        where = word if error.position is None else Extent(start, start + 1)
        place.report(Code.BAD_REGEX, error.message, where)
        return False
    return True
