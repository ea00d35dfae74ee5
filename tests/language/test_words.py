"""The table of words, against what reads it: the Spec, the checks and the printer."""

from __future__ import annotations

import pytest
from language_helpers import look, read

from lorakit.dtypes import LONG
from lorakit.language.quantities import MEANINGS, QUANTITIES
from lorakit.language.statements import (
    Adapt,
    Optimizer,
    Quantize,
    Step,
    Train,
)
from lorakit.language.words import CLAUSES, KEYWORDS, STATEMENTS, choices, clauses_of, name_fault

TAKEN = {"adapt": Adapt, "quantize": Quantize, "train": Train, "optimizer": Optimizer, "step": Step}
BEFORE = {"adapt": "adapt q rank 1", "step": "step"}


def test_every_word_says_what_it_means() -> None:
    for word, keyword in KEYWORDS.items():
        assert keyword.word == word and word in keyword.form and keyword.meaning.endswith(".")
        assert name_fault(word) == f"`{word}` is a word of the language"
    assert name_fault("none") == "`none` says that modules stay as they are"
    assert MEANINGS.keys() == QUANTITIES.keys()


@pytest.mark.parametrize("statement", STATEMENTS)
def test_each_clause_fills_a_field_of_its_statement(statement: str) -> None:
    fields = TAKEN[statement].__dataclass_fields__ if statement in TAKEN else {}
    assert {clause.fills for clause in clauses_of(statement).values()} <= fields.keys()
    assert all(clause.statements for clause in CLAUSES.values())


def test_a_plan_knows_every_dtype_that_a_spec_can_name() -> None:
    assert set(choices("dtype")) == set(choices("compute")) == LONG.keys()


@pytest.mark.parametrize("clause", [word for word, keyword in CLAUSES.items() if keyword.choices])
def test_the_choices_are_those_that_are_read(clause: str) -> None:
    start = BEFORE[CLAUSES[clause].statements[0]]
    (found,) = look(f"{start} {clause} nothing").diagnostics
    named = found.message.partition(" is ")[2].partition(", not ")[0]
    assert tuple(named.replace("`", "").replace(" or ", ", ").split(", ")) == choices(clause)
    for word in choices(clause):
        text = f"{start} {clause} {word}"
        assert read(str(read(text))) == read(text)
