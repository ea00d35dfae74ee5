"""Input that nobody means well with: whatever it is, it is a spec or a SpecError, and soon."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from language_helpers import EXAMPLE, codes, look, survive

from lorakit import SpecError, parse
from lorakit.language.render import render_text
from lorakit.language.words import CLAUSES, STATEMENTS

# hundreds of texts take the paths that a few take, and a tracer nearly doubles their time
pytestmark = pytest.mark.no_cover

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.lora"))
FOUND = Path(__file__).parent / "found"
LIVELY = settings(max_examples=150, deadline=None)


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


@LIVELY
@given(st.binary(max_size=80))
def test_random_bytes(data: bytes) -> None:
    survive(data)


@LIVELY
@given(st.text(max_size=60))
def test_random_text(text: str) -> None:
    survive(text + "\n")


PIECES = [
    *STATEMENTS, *CLAUSES, *"(){}[],;.=+-*/<>@:#%\"\\\n\t ", "..", "**", "<=", "16", "2e-4", "24GiB", "1%", "q_proj",
    "@mlp", "r", "t", "nf4", "double", "gaussian", "adamw", "true", "/a.b/", '"x"', "\r\n", "\x00", "值", "é", "\ufeff",
    "1e999", "0..3",
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30), st.sampled_from(["", " "]))
def test_words_in_any_order(words: list[str], between: str) -> None:
    survive(between.join(words) + "\n")


@pytest.mark.parametrize("text", [EXAMPLE, *(path.read_text("utf-8") for path in EXAMPLES)])
def test_a_program_cut_off_anywhere(text: str) -> None:
    for length in range(len(text)):
        survive(text[:length] + "\n")


def test_a_program_with_a_character_missing_or_too_many() -> None:
    dice = random.Random(1)
    for place in range(len(EXAMPLE)):
        survive(EXAMPLE[:place] + EXAMPLE[place + 1 :])
        survive(EXAMPLE[:place] + dice.choice(PIECES) + EXAMPLE[place:])


@pytest.mark.parametrize("path", sorted(FOUND.glob("*")), ids=lambda path: path.name)
def test_what_fuzzing_found(path: Path) -> None:
    survive(path.read_bytes())


DEEP = 100_000


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("adapt q rank " + "(" * DEEP, "L005"),
        ("adapt q rank " + "(" * DEEP + "4" + ")" * DEEP, "L012"),
        ("adapt q rank " + "-" * DEEP + "4", "L012"),
        ("adapt q rank " + "1+" * DEEP + "1", "L012"),
        ("require " + "1*" * DEEP + "1 < 2", "L012"),
        ("require " + "(" * DEEP + "1" + ")" * DEEP + " < 2", "L012"),
        ("adapt q rank 4 quant wide(pair=" + "(1," * DEEP + "1" + ")" * DEEP + ")", "L012"),
        ("adapt q rank " + "9" * DEEP, "L012"),
        ("adapt q rank 1e" + "9" * DEEP, "L012"),
        ("adapt q rank 1" + "0" * 690 + "*1" + "0" * 690 + "*1" + "0" * 690 + "*1" + "0" * 690 + "*1" + "0" * 690 + "*1"
         + "0" * 690 + "*1" + "0" * 690 + "*1" + "0" * 690, "L012"),
        ("adapt layers[" + "9" * DEEP + "] rank 4", "L012"),
        ("adapt " + "{" * DEEP, "L004"),
        ("adapt q " + "{" * DEEP, "L001"),
        ("adapt q " + "}" * DEEP, "L001"),
        ("let t = " + "[" * DEEP, "L007"),
        ("adapt " + "q." * DEEP + "q rank", "L004"),
        ("adapt /" + "(" * DEEP + "/ rank 4", "L037"),
        ("adapt /" + "a" * DEEP, "L007"),
        ("x" * 1_000_000, "L002"),
        ("adapt " + "x" * 1_000_000, "L042"),
        ("adapt q rank 4 " + '"' * 1_000_000, "L001"),
        ('include "' + "x" * 1_000_000 + '"', "L060"),
        ("\x00" * 1_000_000, "L010"),
        ("use " + "x" * 1_000_000, "L070"),
        ("adapt q rank " + "n" * 1_000_000, "L020"),
    ],
    ids=lambda value: value[:20],
)  # fmt: skip
def test_monsters(text: str, code: str) -> None:
    start = time.process_time()
    analysis = look(text)
    assert len(render_text(analysis.diagnostics, analysis.sources)) < 4_000
    assert analysis.diagnostics[0].code == code
    assert time.process_time() - start < 20


@pytest.mark.parametrize(
    "text",
    [
        "adapt q rank 4 " * 50_000,
        ";x" * 200_000,
        "adapt q rnak 4\n" * 20_000,
        "(" * 1_000 + "\n" + "adapt q rank (\n" * 20_000,
        "adapt q {\n" * 20_000,
        "adapt q,\n" * 20_000,
        "let t = [\n" * 20_000,
        "".join(f"let x{n} = x{n - 1}*x{n - 1}\n" for n in range(1, 2_000)).replace("x0*x0", "7"),
        "".join(f"let t{n} = [t{n - 1}, t{n - 1}]\n" for n in range(1, 200)).replace("t0, t0", "q"),
        "".join(f"let t{n} = [t{n - 1}, q{n}]\n" for n in range(1, 3_000)).replace("t0, ", ""),
        "".join(f"adapt q rank y{n}\n" for n in range(5_000)) + "".join(f"let x{n} = 1\n" for n in range(5_000)),
        "adapt " + ",".join(f"m{n}" for n in range(100_000)) + " rank 4",
        "adapt q {" + "rank 4\n" * 50_000 + "}",
        "#" * 1_000_000,
        "\n" * 1_000_000,
        ";" * 1_000_000,
        "adapt q[" + "0," * 200_000 + "0] rank 4",
        "adapt q[" + " " * 200_000 + " rank 4",
        "adapt q[0" + " " * 200_000 + ", rank 4",
        "adapt q rank 4 quant nf4(" + "blocksize=64," * 50_000 + ")",
    ],
    ids=lambda text: text[:20],
)
def test_much_of_something(text: str) -> None:
    assert seconds(lambda: look(text)) < 40


def test_an_error_of_many_problems_shows_a_screen_of_them_and_holds_all() -> None:
    with pytest.raises(SpecError) as caught:
        parse("adapt q rank 4 rank 5\n" * 3_000)
    assert len(str(caught.value)) < 4_000 and str(caught.value).endswith("… and 2,992 problems more")
    assert len(caught.value.diagnostics) == 3_000


def test_names_that_the_language_uses_itself() -> None:
    for name in ("ERROR", "_END", "$END", "start", "__class__", "__init__", "self", "None"):
        for text in (
            f"{name} x",
            f"adapt {name} rank 4",
            f"let {name} = 4",
            f"adapt q {name} 4",
            f"adapt q rank {name}",
        ):
            survive(text + "\n")
    assert codes("adapt __class__ rank 4 quant __class__(__init__=3)") == ["L030"]
