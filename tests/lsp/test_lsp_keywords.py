"""The table of what words mean, against the language's own tables."""

from __future__ import annotations

import pytest

from lorakit.language import analyse
from lorakit.language.quantities import QUANTITIES as KNOWN_QUANTITIES
from lorakit.language.words import CLAUSES, STATEMENTS
from lorakit.lsp.keywords import CHOICES, KEYWORDS, QUANTITIES


def test_every_word_of_the_language_is_explained() -> None:
    assert {*STATEMENTS, *CLAUSES, "double", "true", "false"} == KEYWORDS.keys()
    assert KNOWN_QUANTITIES.keys() == QUANTITIES.keys()


@pytest.mark.parametrize("clause", CHOICES)
def test_the_choices_are_those_of_the_language(clause: str) -> None:
    (found,) = analyse(f"{'step' if clause == 'compute' else 'adapt q rank 1'} {clause} nothing").diagnostics
    named = found.message.partition(" is ")[2].partition(", not ")[0]
    assert named.replace("`", "").replace(" or ", ", ").split(", ") == list(CHOICES[clause])
