"""What a run tells whoever started it: a library says nothing, a command draws on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.planning.plan import Plan

Counted = Callable[[int, int], None]


@contextmanager
def _uncounted(what: str) -> Iterator[Counted | None]:
    yield None


@dataclass(frozen=True, slots=True)
class Reporter:
    """The ways in which a run speaks, by default none.

    `say` is given lines, `show_plan` the plan once it is made. With its name in words, `working` goes around a step of
    unknown length, `measured` around one that counts bytes done and bytes in all, `tracked` around items to work on.
    """

    say: Callable[[str], None] = lambda line: None
    show_plan: Callable[[Plan], None] = lambda plan: None
    working: Callable[[str], AbstractContextManager[None]] = lambda what: nullcontext()
    measured: Callable[[str], AbstractContextManager[Counted | None]] = _uncounted
    tracked: Callable[[Sequence[Any], str], Iterable[Any]] = lambda items, what: items


SILENT = Reporter()
