"""Index ranges that reach beyond what a model has: no range passes in silence for a shorter one."""

from __future__ import annotations

from collections.abc import Iterable

from lorakit.diagnostics import Code, Diagnostic, diagnostic_at
from lorakit.language.regexes import RegexError
from lorakit.language.statements import IndexRange, Rule, Segment, Target
from lorakit.planning.targets import Selection, outermost_index


def out_of_range(rule: Rule, selection: Selection) -> Iterable[Diagnostic]:
    """Yield a diagnostic for every range of a rule with an end that none of its containers has."""
    for target in (*rule.targets, *rule.excepts):
        for position, segment in enumerate(target.segments):
            if segment.indices:
                container = Target((*target.segments[:position], Segment(segment.name)))
                yield from _beyond(segment.indices, selection.matches(container), rule, selection)
    if rule.layers:
        yield from _beyond(rule.layers, _outermost(rule, selection), rule, selection)


def _outermost(rule: Rule, selection: Selection) -> Iterable[str]:
    """Return the containers that a `layers` clause counts in."""
    try:
        positions = [outermost_index(path) for target in rule.targets for path in selection.matches(target)]
    except RegexError:
        # which is reported where the target stands
        return ()
    return dict.fromkeys(position[0] for position in positions if position is not None)


def _beyond(
    ranges: tuple[IndexRange, ...], containers: Iterable[str], rule: Rule, selection: Selection
) -> Iterable[Diagnostic]:
    # of several towers the longest counts
    length, container = max(((selection.length_of(path), path) for path in containers), default=(0, ""))
    for one in ranges if length else ():
        beyond = [end for end in dict.fromkeys((one.first, one.last)) if not -length <= end < length]
        if beyond:
            # a range that lies beyond whole was meant for another model: nothing is near it
            within = IndexRange(*(min(max(end, -length), length - 1) for end in (one.first, one.last)))
            meant = f"write `{within}`" if within.first != within.last else f"the layers are 0..{length - 1}"
            yield diagnostic_at(
                Code.INDEX_BEYOND,
                f"{' and '.join(map(str, beyond))} {'is' if len(beyond) == 1 else 'are'} out of range: "
                f"`{container}` has {length} layers, 0 to {length - 1}",
                one.span or rule.span,
                suggestion=f"{meant}; or mark the rule `optional`",
            )
