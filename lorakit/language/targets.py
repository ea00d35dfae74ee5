"""Targets: words to selectors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from lorakit.diagnostics import Code
from lorakit.language.names import Scope
from lorakit.language.problems import Place
from lorakit.language.regexes import RegexError, check_regex
from lorakit.language.statements import IndexRange, Segment, Target
from lorakit.language.suggestions import listed
from lorakit.language.syntax import RangeNode, Word

# Lists of lists grow fast; this many selectors are more than any model has modules by hand
MAX_TARGETS = 10_000

_SEGMENT = re.compile(r"([@:]?[\w*-]+)(?:\[([^\]]*)\])?")


class _FaultError(ValueError):
    """What is wrong inside a target, and where in its words."""

    def __init__(self, code: Code, message: str, start: int, end: int, *notes: str) -> None:
        super().__init__(message)
        self.code, self.message, self.start, self.end, self.notes = code, message, start, end, notes


def read_targets(
    words: Iterable[Word], scope: Scope, roles: Mapping[str, Any], place: Place
) -> tuple[Target, ...] | None:
    """Return the targets of a list, those of `let` lists in the place of their names; None where one is at fault."""
    targets: list[Target] = []
    sound = True
    for word in words:
        definition = scope.definitions.get(word)
        if definition is not None and isinstance(definition.value, tuple):
            targets.extend(definition.value)
            if len(targets) > MAX_TARGETS:
                place.report_word(Code.LIMIT, f"this list has more than {MAX_TARGETS} targets", word)
                return None
            continue
        if definition is not None and definition.value is None:
            sound = False
            continue
        if definition is None and word in scope.later_lists:
            sound = False
            note = f"help: for a module of that name write `**.{word}`"
            place.report_word(Code.UNKNOWN_NAME, f"`{word}` is used above its definition", word, None, note)
            continue
        target = _read_target(word, scope, roles, place)
        if target is None:
            sound = False
        else:
            targets.append(target)
    return tuple(targets) if sound else None


def _read_target(word: Word, scope: Scope, roles: Mapping[str, Any], place: Place) -> Target | None:
    """Return the target that a word spells, or None where its fault has been reported."""
    try:
        target = _target(word)
    except _FaultError as fault:
        start = word.start
        place.report(fault.code, fault.message, start + fault.start, start + fault.end, None, *fault.notes)
        return None
    if target.role is not None and target.role not in roles:
        if scope.lacks_plugins:
            return None
        near = place.nearest(target.role, roles)
        note = () if near else (f"the roles are {listed((f'@{role}' for role in roles), 'and')}",)
        start = word.end - len(target.role)
        notes = (*note, *scope.absence("role", target.role))
        place.report(Code.UNKNOWN_ROLE, f"there is no role `@{target.role}`", start, word.end, near, *notes)
        return None
    return replace(target, span=place.word_span(word))


def read_ranges(nodes: Iterable[RangeNode], place: Place) -> tuple[IndexRange, ...] | None:
    """Return the ranges of a `layers` clause, or None where one is at fault."""
    ranges: list[IndexRange] = []
    sound = True
    for node in nodes:
        try:
            ranges.append(_range(node.first, node.last))
        except _FaultError as fault:
            place.report(fault.code, fault.message, node.start, node.end, None, *fault.notes)
            sound = False
    return tuple(ranges) if sound else None


def _target(words: str) -> Target:
    if words.startswith("/"):
        _check_regex(words[1:-1])
        return Target(regex=words[1:-1])
    segments: list[Segment] = []
    role = class_name = None
    for match in _SEGMENT.finditer(words):
        name, indices = match[1], match[2]
        if name[0] == "@":
            role = name[1:]
        elif name[0] == ":":
            class_name = name[1:]
        else:
            segments.append(_segment(name, indices, match.start()))
    return Target(tuple(segments), role, class_name)


def _segment(name: str, indices: str | None, start: int) -> Segment:
    end = start + len(name)
    if "**" in name and name != "**":
        message = "`**` stands for whole segments: `a.**.b`; a part of a segment is `*`"
        raise _FaultError(Code.BAD_TARGET, message, start, end)
    if indices is None:
        return Segment(name)
    if name == "**":
        raise _FaultError(Code.BAD_TARGET, "`**` is no numbered container, so it takes no indices", start, end)
    ranges = []
    for match in re.finditer(r"(-?[0-9]+)(?:\s*\.\.\s*(-?[0-9]+))?", indices):
        try:
            ranges.append(_range(match[1], match[2] or match[1]))
        except _FaultError as fault:
            offset = end + 1
            raise _FaultError(
                fault.code, fault.message, offset + match.start(), offset + match.end(), *fault.notes
            ) from None  # fmt: skip
    return Segment(name, tuple(ranges))


def _range(first: str, last: str) -> IndexRange:
    if max(len(first), len(last)) > 9:
        raise _FaultError(Code.LIMIT, "an index has at most eight digits", 0, 0)
    low, high = int(first), int(last)
    # with ends counted from different sides only a model can tell which comes first
    if low > high and (low < 0) == (high < 0):
        note = f"help: write `{high}..{low}`"
        raise _FaultError(Code.REVERSED_RANGE, f"the range `{low}..{high}` ends before it begins", 0, 0, note)
    return IndexRange(low, high)


def _check_regex(words: str) -> None:
    try:
        check_regex(words)
    except RegexError as error:
        position = error.position
        start = 1 + min(position, len(words)) if position is not None else 0
        end = start + 1 if position is not None else len(words) + 2
        raise _FaultError(Code.BAD_REGEX, error.message, start, end) from None
