"""A check: one thing that is asked of a plugin, with words for whoever wrote the plugin."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

Variants = Mapping[str, tuple[Any, ...]]


class CheckError(AssertionError):
    """A plugin does not do what its protocol says; the message says what was expected and what came."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is asked of a plugin: call it, and it raises CheckError where the plugin does otherwise.

    `id` is `name` or `name[variant]` and names one test; `question` says in a sentence what is asked. It takes for
    granted what checks of a lower `stage` ask; None for one that stands for itself.
    """

    id: str
    question: str
    run: Callable[[], None]
    stage: int | None = None

    @property
    def name(self) -> str:
        """The id without its variant."""
        return self.id.partition("[")[0]

    def __call__(self) -> None:
        try:
            with _quiet():
                self.run()
        except CheckError:
            raise
        except Exception as error:
            raise CheckError(f"{self.question} It raised {type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        return self.id

    def at_stage(self, stage: int | None) -> Check:
        """Return the same check at a stage."""
        return dataclasses.replace(self, stage=stage)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what lorakit tells users of an adapter: a check is no run of theirs."""
    logger = logging.getLogger("lorakit")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def expect(holds: bool, message: str) -> None:
    """Raise CheckError with this message unless something holds."""
    if not holds:
        raise CheckError(message)


def variants_of(function: Callable[..., None], subject: Any, variants: Variants | None = None) -> Iterator[Check]:
    """Yield a check for every variant of a function whose docstring's first paragraph is the question."""
    question = " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())
    name = function.__name__.replace("_", "-")
    for variant, arguments in (variants or {"": ()}).items():
        yield Check(f"{name}[{variant}]" if variant else name, question, partial(function, subject, *arguments))
