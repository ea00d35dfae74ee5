"""What failed, told by cause: one fault of a plugin fails many checks, and its author wants to read of it once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lorakit.testing.checks import Check, CheckError

# the checks that are named where many fail by one cause
SHOWN = 3
# what differs from variant to variant of one fault: numbers and dtypes
VARYING = re.compile(r"torch\.\w+|[-+]?\d+(\.\d+)?(e[-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class Failure:
    """A check that failed on a plugin, which `title` names, and what it said."""

    title: str
    check: Check
    reason: str

    @property
    def own(self) -> str:
        """What it said, without the question that stands before what a plugin raised."""
        return self.reason.removeprefix(self.check.question).strip()

    @property
    def cause(self) -> tuple[str, str]:
        """What failures of one cause have in common: what was raised, or the check and its words."""
        words = VARYING.sub("#", self.own)
        return ("" if words.startswith("It raised") else self.check.name, words)


def causes(failures: Iterable[Failure]) -> list[str]:
    """Return a block of text for every cause; a last line names the checks that rest on others which failed."""
    failures = list(failures)
    first, resting = _parted(failures)
    groups: dict[tuple[str, str], list[Failure]] = {}
    for failure in first:
        groups.setdefault(failure.cause, []).append(failure)
    blocks = [_block(group) for group in groups.values()]
    if resting:
        blocks[-1] += f"\nmore rests on that, and fails too: {_some([failure.check.name for failure in resting])}"
    return blocks


def _parted(failures: Sequence[Failure]) -> tuple[list[Failure], list[Failure]]:
    """Return the failures that stand for themselves, and those of checks that take for granted what failed."""
    lowest: dict[str, int] = {}
    for failure in failures:
        if (stage := failure.check.stage) is not None:
            lowest[failure.title] = min(stage, lowest.get(failure.title, stage))
    first: list[Failure] = []
    resting: list[Failure] = []
    for failure in failures:
        stage = failure.check.stage
        (first if stage is None or stage == lowest[failure.title] else resting).append(failure)
    return first, resting


def _block(group: Sequence[Failure]) -> str:
    titles = ", ".join(dict.fromkeys(failure.title for failure in group))
    ids = list(dict.fromkeys(failure.check.id for failure in group))
    first = group[0]
    question = f"\n  {first.check.question}" * bool(first.check.question)
    return f"failed: {titles}, {_some(ids)}{question}\n  {first.own}"


def _some(names: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(names))
    more = len(distinct) - SHOWN
    return ", ".join(distinct[:SHOWN]) + f" and {more} more" * (more > 0)


def staged(checks: Iterable[Check], stages: Sequence[Sequence[str]]) -> list[Check]:
    """Return checks that know which of them take others for granted: those of a later stage all of an earlier one.

    A check that no stage names stands for itself.
    """
    order: Mapping[str, int] = {name: number for number, names in enumerate(stages) for name in names}
    return [check.at_stage(order.get(check.name)) for check in checks]


def require_all(what: str, checks: Iterable[Check]) -> None:
    """Run checks to the end. Raises: CheckError naming every one that failed, by cause."""
    failures = []
    for check in checks:
        try:
            check()
        except CheckError as error:
            failures.append(Failure(what, check, str(error)))
    if failures:
        raise CheckError(f"{what} fails {len(failures)} checks:\n" + "\n".join(causes(failures)))
