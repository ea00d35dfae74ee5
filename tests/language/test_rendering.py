"""Diagnostics as text, JSON and GitHub annotations."""

from __future__ import annotations

import json
import unicodedata

import pytest
from language_helpers import look

from lorakit.diagnostics import Code, Span, diagnostic_at
from lorakit.errors import SpecError
from lorakit.language import parse
from lorakit.language.render import render_github, render_json, render_text


def shown(text: str, color: bool = False) -> str:
    analysis = look(text)
    return render_text(analysis.diagnostics, analysis.sources, color)


def test_the_form() -> None:
    assert shown("let r = 16\nadapt q_proj rnak r quant nf4") == (
        "error[L003]: `rnak` is no clause\n"
        " --> <text>:2:14\n"
        "  |\n"
        "2 | adapt q_proj rnak r quant nf4\n"
        "  |              ^^^^\n"
        "  = help: did you mean `rank`?"
    )


def test_notes_and_gutters() -> None:
    text = "\n" * 9 + "let r = 1\nlet r = 2"
    assert shown(text) == (
        "error[L021]: `r` is defined twice\n"
        "  --> <text>:11:5\n"
        "   |\n"
        "11 | let r = 2\n"
        "   |     ^\n"
        "   = note: it is first defined at <text>:10:5"
    )


def test_what_parse_raises() -> None:
    with pytest.raises(SpecError) as raised:
        parse("adapt q rnak 4\nadapt k")
    assert [found.code for found in raised.value.diagnostics] == ["L003", "L042"]
    assert str(raised.value) == shown("adapt q rnak 4\nadapt k")
    assert str(raised.value).count("\n\nerror[") == 1


@pytest.mark.parametrize(
    ("line", "column", "shown_line", "carets"),
    [
        ("\tadapt q rnak", 10, " adapt q rnak", "         ^^^^"),
        ("adapt 値 rnak", 9, "adapt 値 rnak", "         ^^^^"),
        ("adapt /e\u0301/ rnak", 12, "adapt /e\u0301/ rnak", "          ^^^^"),
        ("adapt q r\u0301na\u212b 4", 9, "adapt q r\u0301na\u212b 4", "        ^"),
        ("adapt ｑ ｒｎａｋ", 9, "adapt ｑ ｒｎａｋ", "         ^^^^^^^^"),
        ("adapt q \x00", 9, "adapt q \u2400", "        ^"),
        ("adapt q \x1b[31m", 9, "adapt q \u241b[31m", "        ^"),
        ("adapt q \u202e", 9, "adapt q \ufffd", "        ^"),
        ("adapt q \ud800", 9, "adapt q \ufffd", "        ^"),
        ("adapt q rank 4 \u2028x", 16, "adapt q rank 4 \ufffdx", "               ^"),
    ],
)
def test_carets_stand_under_their_words(line: str, column: int, shown_line: str, carets: str) -> None:
    text = f"# first\n{line}\r\n# last"
    (found,) = look(text).diagnostics
    assert (found.line, found.column) == (2, column)
    lines = shown(text).split("\n")
    assert lines[3] == f"2 | {shown_line}" and lines[4].removeprefix("  | ").startswith(carets)
    assert not any(unicodedata.category(character) in ("Cc", "Cf", "Cs") for character in "".join(lines))


def test_long_lines_show_a_window() -> None:
    text = "adapt " + ",".join(f"module_{number}" for number in range(2000)) + " rnak 4 " + "paged " * 500
    lines = shown(text).split("\n")
    assert len(lines[3]) < 130 and lines[3].startswith("1 | …") and lines[3].endswith("…")
    start = lines[4].index("^")
    assert lines[3][start : start + 4] == "rnak" and lines[4].endswith("^^^^")


def test_line_ends() -> None:
    analysis = look("# a\u2028b\x0bc\x0cd\x85e\rf\r\nadapt q rnak 4\n")
    assert [(found.line, found.column) for found in analysis.diagnostics] == [(2, 9)]


def test_diagnostics_over_several_lines() -> None:
    text = "adapt q rank 4 alpha (0 *\n  2)"
    (found,) = look(text).diagnostics
    assert (found.line, found.column, found.end_line, found.end_column) == (1, 22, 2, 5)
    assert shown(text).split("\n")[4] == "  | " + " " * 21 + "^^^^"


def test_color_only_if_asked() -> None:
    assert "\x1b" not in shown("adapt q rnak") and "\x1b[1;31m^^^^\x1b[0m" in shown("adapt q rnak", color=True)


def test_json() -> None:
    (record,) = json.loads(render_json(look("adapt q rnak 4").diagnostics))
    assert record == {
        "code": "L003",
        "severity": "error",
        "message": "`rnak` is no clause",
        "file": "<text>",
        "line": 1,
        "column": 9,
        "end_line": 1,
        "end_column": 13,
        "suggestion": "did you mean `rank`?",
        "notes": [],
    }
    assert json.loads(render_json(())) == []


def test_github() -> None:
    found = diagnostic_at(
        Code.UNEXPECTED, "100% of a:\nb, c", Span("a,b:c.lora", 1, 2, 3, 4), suggestion="do\r\nthis", notes=["that"]
    )
    assert render_github([found]) == (
        "::error file=a%2Cb%3Ac.lora,line=1,col=2,endLine=3,endColumn=4,title=lorakit L001"
        "::100%25 of a:%0Ab, c%0Ahelp: do%0D%0Athis%0Anote: that"
    )
    assert render_github([]) == ""


def test_a_diagnostic_without_a_place() -> None:
    found = diagnostic_at(Code.MATCHES_NOTHING, "`q` matches nothing", None)
    assert render_text([found], {}) == "error[L101]: `q` matches nothing\n --> <spec>:1:1"
