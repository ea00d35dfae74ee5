"""The table of words, against what reads it: the Spec, the checks and the printer."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from language_helpers import look, read

from lorakit.dtypes import LONG
from lorakit.language.catalogue import word_pages
from lorakit.language.statements import (
    Adapt,
    Optimizer,
    Quantize,
    Step,
    Train,
)
from lorakit.language.words import CLAUSES, KEYWORDS, QUANTITIES, STATEMENTS, clauses_of, name_fault

ROOT = Path(__file__).parents[2]
TAKEN = {"adapt": Adapt, "quantize": Quantize, "train": Train, "optimizer": Optimizer, "step": Step}
BEFORE = {"adapt": "adapt q rank 1", "step": "step"}


def test_every_word_says_what_it_means() -> None:
    for word, keyword in KEYWORDS.items():
        page = word_pages()[word]
        assert keyword.word == word and word in page.form and page.meaning.endswith(".")
        assert tuple(page.choices) == keyword.choices
        assert name_fault(word) == f"`{word}` is a word of the language"
    assert name_fault("none") == "`none` says that modules stay as they are"
    assert list(word_pages()) == [*KEYWORDS, *QUANTITIES]


@pytest.mark.parametrize("statement", STATEMENTS)
def test_each_clause_fills_a_field_of_its_statement(statement: str) -> None:
    fields = {field.name for field in dataclasses.fields(TAKEN[statement])} if statement in TAKEN else set()
    assert {clause.fills for clause in clauses_of(statement).values()} <= fields
    assert all(clause.statements for clause in CLAUSES.values())


def test_a_plan_knows_every_dtype_that_a_spec_can_name() -> None:
    assert CLAUSES["dtype"].choices == CLAUSES["compute"].choices == tuple(LONG)


@pytest.mark.parametrize("clause", [word for word, keyword in CLAUSES.items() if keyword.choices])
def test_the_choices_are_those_that_are_read(clause: str) -> None:
    start = BEFORE[CLAUSES[clause].statements[0]]
    (found,) = look(f"{start} {clause} nothing").diagnostics
    named = found.message.partition(" is ")[2].partition(", not ")[0]
    assert tuple(named.replace("`", "").replace(" or ", ", ").split(", ")) == CLAUSES[clause].choices
    for word in CLAUSES[clause].choices:
        text = f"{start} {clause} {word}"
        assert read(str(read(text))) == read(text)


@pytest.mark.parametrize("clause", ["alpha", "scaling", "dropout", "dtype", "bias", "lr", "lr_ratio", "paged", "batch"])
def test_a_clause_like_others_is_spelled_in_five_places(clause: str) -> None:
    language = ROOT / "lorakit" / "language"
    # what other tools say in its place is no part of it, nor what the grammar is made into
    modules = (path for path in language.glob("*.py") if path.name not in ("foreign_words.py", "compiled.py"))
    files = [*modules, language / "pages" / "words.md", *(ROOT / "grammar").glob("lorakit.*")]
    spelled = {path.name for path in files if re.search(rf"\b{clause}\b", path.read_text("utf-8"), re.IGNORECASE)}
    assert spelled == {"words.py", "words.md", "statements.py", "lorakit.lark", "lorakit.tmLanguage.json"}
