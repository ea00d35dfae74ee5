"""The grammar file, and what is kept of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from language_helpers import EXAMPLE
from lark import Lark

from lorakit.language.machine import Machine
from lorakit.language.syntax import NODES, SEQUENCES
from lorakit.language.tables import Tables, compile_tables, grammar_text, tables
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
    made = tables()
    assert {reduction.node for reduction in made.reductions} - {""} == {*NODES, *SEQUENCES}
    assert set(made.starts) == {"start", "value"} and Machine("value").accepted() >= {"NUMBER", "STRING", "_LSQB"}


def test_cached_tables_are_the_compiled_ones() -> None:
    compiled = compile_tables(grammar_text())
    assert isinstance(compiled, Tables) and compiled == tables()
    script = "from lorakit.language.tables import *; print(json.dumps(compile_tables(grammar_text())))"
    for seed in "12":
        command, environment = [sys.executable, "-c", script], {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
        assert json.loads(done.stdout) == json.loads(json.dumps(compiled))


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"[1,2,3]", b"\xff", b"null", b'{"a": 1}'])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    environment = {**os.environ, "LORAKIT_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    script = "from lorakit.language import parse; print(parse('adapt q rank 4'))"

    def run() -> str:
        command = [sys.executable, "-c", script]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert run() == "adapt q rank 4\n\n"
    (cache,) = tmp_path.glob("grammar-*.json")
    sound = cache.read_bytes()
    # whatever is wrong with it, and if it is of another grammar
    for kept in (damage, sound.replace(b'"origin": "', b'"origin": "another')):
        cache.write_bytes(kept)
        assert run() == "adapt q rank 4\n\n" and cache.read_bytes() == sound


def test_nothing_needs_the_cache(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    environment = {**os.environ, "LORAKIT_CACHE": str(blocked), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "from lorakit.language import parse; print(parse('adapt q rank 4'))"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "adapt q rank 4\n\n" and not done.stderr
