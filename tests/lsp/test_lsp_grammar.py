"""The TextMate grammar: its words are the language's own, and it sees in every example what the parser sees."""

from __future__ import annotations

import functools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from npm import installed

from lorakit.language.amounts import UNITS
from lorakit.language.parser import parse_syntax
from lorakit.language.source import SourceText
from lorakit.language.syntax import Word
from lorakit.language.words import CLAUSE_TERMINALS, CLAUSES, QUANTITIES, STATEMENT_TERMINALS, STATEMENTS
from lorakit.lsp.reading import statements
from lorakit.lsp.slots import ChoiceSlot, NewNameSlot, OptionSlot, PluginSlot, ValueSlot, slot_behind

ROOT = Path(__file__).parents[2]
GRAMMAR = ROOT / "grammar" / "lorakit.tmLanguage.json"
TESTER = "vscode-tmgrammar-test@0.1.3"
KEYWORD, CLAUSE = "keyword.control.statement.lora", "keyword.other.clause.lora"

TRICKY = """
adapt rank,adapt rank 16 alpha 2 * rank  # a module called like a clause
adapt q_proj , v_proj rank (r + 1)*2 { quant nf4(blocksize=64) double; paged } # after the block
adapt layers[0, 2].q_proj,  # behind a comma
  @mlp, model.*.up-proj,

  :Conv1D,/a, b(c)+d/ lr_ratio 16 except @norm, x layers 0..3,7 optional
quantize @linear int8(threshold=6.0)
let t = [q_proj,  # first
  @mlp]; let s = "a # b; c"; let u = 2*r
adapt t {
  init   gaussian(
    sigma=0.02,  # small
  )
  except **.lm_head
  scaling rslora ; dtype bf16
}
optimizer adamw(betas=(0.9, 0.99), weight_decay=w)
optimizer sgd(nesterov=true)
step batch r*2 { tokens 2048; compute bf16
  memory 22GiB capture }
include "a/b.lora"
use lorakit-extra >= 1.2
require peak_memory*2 <= 24GiB + most
train@norm lr 1e-4
"""

# What is being written does not change the colours of what follows
UNFINISHED = """# SYNTAX TEST "source.lora"
adapt·
let r = "a
# <--- keyword.control.statement.lora
adapt q rank (2
  3)
adapt layers[0
train x
# <----- keyword.control.statement.lora
""".replace("·", " ")


@functools.cache
def grammar() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(GRAMMAR.read_text(encoding="utf-8"))
    return loaded


def patterns(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every regex of a part of the grammar, with the rule that holds it."""
    if isinstance(node, dict):
        yield from ((node[key], node) for key in ("match", "begin", "end") if key in node)
        for value in node.values():
            yield from patterns(value)
    elif isinstance(node, list):
        for value in node:
            yield from patterns(value)


def named(scope: str) -> set[str]:
    """Return the words that the grammar spells out in what it gives a scope."""
    found: set[str] = set()
    for pattern, rule in patterns(grammar()["repository"]):
        if rule.get("name") == scope:
            found |= set(re.findall(r"[a-z]\w+", pattern.replace("\\b", " ")))
        for number, capture in (rule.get("captures") or rule.get("beginCaptures") or {}).items():
            if capture["name"] == scope and pattern != rule.get("end"):
                groups = re.findall(r"\((?!\?)([^()]*)\)", pattern)
                found |= set(re.findall(r"\w+", groups[int(number) - 1]))
    return found


def test_its_regexes_can_be_read() -> None:
    for pattern, _ in patterns(grammar()):
        re.compile(pattern)


def test_every_rule_that_is_included_is_there() -> None:
    included = set(re.findall(r'"include": "#(\w+)"', GRAMMAR.read_text(encoding="utf-8")))
    assert included == grammar()["repository"].keys()


def test_its_keywords_are_those_of_the_language() -> None:
    assert named(KEYWORD) == set(STATEMENTS)
    assert named(CLAUSE) == {*CLAUSES, "double"}
    assert named("support.variable.quantity.lora") == set(QUANTITIES)


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_is_read(unit: str) -> None:
    found = re.fullmatch(grammar()["repository"]["number"]["match"], f"24{unit}")
    assert found is not None and found[1] == unit


SCOPES = {
    **dict.fromkeys(STATEMENT_TERMINALS, KEYWORD),
    **dict.fromkeys((*CLAUSE_TERMINALS, "DOUBLE"), CLAUSE),
    **dict.fromkeys(("TARGET", "REGEX"), "meta.targets.lora"),
    **dict.fromkeys(("TRUE", "FALSE"), "constant.language.boolean.lora"),
    **dict.fromkeys(("NUMBER", "INTEGER"), "constant.numeric.lora"),
    **dict.fromkeys(("PLUS", "MINUS", "TIMES", "OVER"), "keyword.operator.arithmetic.lora"),
    **dict.fromkeys(("COMPARISON", "_AT_LEAST"), "keyword.operator.comparison.lora"),
    "STRING": "string.quoted.double.lora",
    "_EQUAL": "keyword.operator.assignment.lora",
    "_COMMA": "punctuation.separator.comma.lora",
    "_DOTS": "keyword.operator.range.lora",
    "DISTRIBUTION": "entity.name.package.lora",
    "VERSION": "constant.other.version.lora",
}
NAMES = {
    PluginSlot: "entity.name.function.plugin.lora",
    ChoiceSlot: "support.constant.choice.lora",
    OptionSlot: "variable.parameter.option.lora",
    NewNameSlot: "variable.other.definition.lora",
    ValueSlot: "variable.other.lora",
}


def scope_of(before: list[Word], word: Word) -> str | None:
    if word.type != "NAME":
        return SCOPES.get(word.type)
    if before[0].type == "REQUIRE" and word in QUANTITIES:
        return "support.variable.quantity.lora"
    return NAMES[type(slot_behind(before))]


def asserted(text: str) -> str:
    """Return a program as a test of the grammar: under every line, what the parser makes of its words."""
    tree = parse_syntax(SourceText("spec", text))
    assert tree.diagnostics == ()
    expected: dict[int, list[str]] = {}
    for statement in statements(tree.tokens):
        for index, word in enumerate(statement):
            scope = scope_of(statement[:index], word)
            if scope is not None:
                line, column = tree.source.position(word.start)
                expected.setdefault(line, []).append(assertion(column - 1, len(word), scope))
    lines = ['# SYNTAX TEST "source.lora"']
    for number, written in enumerate(text.split("\n"), 1):
        lines += [written, *expected.get(number, [])]
    return "\n".join(lines) + "\n"


def assertion(column: int, width: int, scope: str) -> str:
    # the sign of a comment takes the first column, which only the arrow form reaches
    return f"#{' ' * (column - 1)}{'^' * width} {scope}" if column else f"# <{'-' * width} {scope}"


@pytest.fixture(scope="module")
def tester() -> list[str]:
    """The command that tests grammars."""
    script = installed("tmgrammar", TESTER) / "node_modules" / "vscode-tmgrammar-test" / "dist" / "unit.js"
    return ["node", str(script), "--grammar", str(GRAMMAR)]


def test_it_sees_what_the_parser_sees(tester: list[str], tmp_path: Path) -> None:
    examples = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.lora")}
    for name, text in {**examples, "tricky.lora": TRICKY}.items():
        (tmp_path / name).write_text(asserted(text), encoding="utf-8")
    (tmp_path / "unfinished.lora").write_text(UNFINISHED)
    assert len(list(tmp_path.iterdir())) >= 4
    done = subprocess.run(
        [*tester, str(tmp_path / "*.lora")], capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
