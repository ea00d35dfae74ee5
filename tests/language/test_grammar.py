"""The grammar file, and the tables that are made of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from language_helpers import EXAMPLE
from lark import Lark

from lorakit.language.compiled import TABLES
from lorakit.language.compiling import compile_tables, grammar_text
from lorakit.language.machine import Machine
from lorakit.language.syntax import NODES, SEQUENCES
from lorakit.language.words import CLAUSES, STATEMENTS

ROOT = Path(__file__).parents[2]


def lark() -> Lark:
    return Lark(grammar_text(), parser="lalr", lexer="contextual", start=["start", "value"])


def test_the_grammar_is_the_file_in_the_repository() -> None:
    assert grammar_text() == (ROOT / "grammar" / "lorakit.lark").read_text("utf-8")


def test_lark_itself_reads_the_example_by_it() -> None:
    tree = lark().parse(EXAMPLE, start="start")
    assert [getattr(child, "data", child) for child in tree.children] == [
        "let", "adapt", "adapt", "quantize", "optimizer", "step", "require", "require",
    ]  # fmt: skip
    assert lark().parse("[q, k]", start="value").data == "target_list"


def test_the_words_of_the_grammar_are_those_of_the_language() -> None:
    keywords = {terminal.name for terminal in lark().terminals if terminal.pattern.value.endswith(r"\b")}
    assert keywords == {word.upper() for word in (*STATEMENTS, *CLAUSES, "double", "true", "false")}


def test_no_plugin_is_in_the_grammar() -> None:
    for word in ("nf4", "dora", "gaussian", "adamw", "linear", "attention", "bf16", "rslora"):
        assert word not in grammar_text()


def test_every_rule_makes_a_node() -> None:
    assert {reduction.node for reduction in TABLES.reductions} - {""} == {*NODES, *SEQUENCES}
    assert set(TABLES.starts) == {"start", "value"} and Machine("value").accepted() >= {"NUMBER", "STRING", "_LSQB"}


def test_the_tables_are_those_of_the_grammar() -> None:
    made = compile_tables(grammar_text())
    # whoever changes the grammar makes them anew: python -m lorakit.language.compiling
    assert made == TABLES
    script = "from lorakit.language.compiling import *; print(module_text(compile_tables(grammar_text())), end='')"
    written = (ROOT / "lorakit" / "language" / "compiled.py").read_text("utf-8")
    for seed in "12":
        command, environment = [sys.executable, "-c", script], {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout == written
