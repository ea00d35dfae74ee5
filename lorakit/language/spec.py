"""The Spec: what a `.lora` program means, as immutable plain data.

A Spec knows nothing of any model. Two specs are equal when they mean the same; where their words stood does not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lorakit.language.statements import Optimizer, Require, Rule, Step


@dataclass(frozen=True, slots=True)
class Spec:
    """A whole program: its rules in order of appearance, the optimizer, how a step runs, and what it requires.

    `source` is the text that it was read from, and `sources` are the texts of all of its files, by the names in spans.
    """

    rules: tuple[Rule, ...] = ()
    optimizer: Optimizer | None = None
    step: Step | None = None
    requires: tuple[Require, ...] = ()
    uses: tuple[tuple[str, str | None], ...] = ()
    source: str = field(default="", compare=False, repr=False)
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __str__(self) -> str:
        """Return the Spec as text that parses to an equal Spec. Raises: SpecError for what cannot be written."""
        from lorakit.language.printer import to_text

        return to_text(self)
