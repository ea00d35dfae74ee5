"""The small parts, each by itself."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorakit.diagnostics import Span
from lorakit.language.amounts import Amount, LimitError, UnitError, combine, literal, to_number
from lorakit.language.source import SourceText, decode
from lorakit.language.statements import Adapt, IndexRange, Segment, Target
from lorakit.language.suggestions import distance, listed, nearest


@pytest.mark.parametrize(
    ("one", "other", "edits"),
    [("", "", 0), ("rank", "rank", 0),
     ("rnak", "rank", 1), ("rak", "rank", 1), ("ranks", "rank", 1), ("bank", "rank", 1),
     ("knar", "rank", 3), ("", "rank", 4), ("alhpa", "alpha", 1), ("kitten", "sitting", 3)],
)  # fmt: skip
def test_distance(one: str, other: str, edits: int) -> None:
    assert distance(one, other) == distance(other, one) == edits


@given(st.text("abc", max_size=6), st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_distance_is_one(a: str, b: str, c: str) -> None:
    assert (distance(a, b) == 0) == (a == b)
    assert abs(len(a) - len(b)) <= distance(a, b) <= max(len(a), len(b))


def test_nearest() -> None:
    assert nearest("rnak", ["rank", "alpha"]) == "rank"
    assert nearest("Rank", ["rank"]) == "rank"
    assert nearest("rank", ["rank"]) is None
    assert nearest("yes", ["layers", "lr"]) is None
    assert nearest("r", ["lr"]) is None
    assert nearest("x" * 1000, ["x" * 1001]) is None
    assert nearest("a", []) is None


def test_listed() -> None:
    assert [listed([]), listed("a"), listed("ab"), listed("abc", "and")] == [
        "",
        "`a`",
        "`a` or `b`",
        "`a`, `b` and `c`",
    ]


def test_literals() -> None:
    assert literal("16") == Amount(Fraction(16)) and literal("1.50") == Amount(Fraction(3, 2))
    assert literal("2e-4").value == Fraction(2, 10000) and literal("1E+2").number == 100
    assert literal("1%") == Amount(Fraction(1, 100), "%") and literal("1%").written == 1
    assert literal("3KiB") == Amount(Fraction(3072), "KiB") and literal("3KiB").written == 3
    for words in ("9" * 701, "1e401", "1e-401", "1e" + "9" * 50):
        with pytest.raises(LimitError):
            literal(words)


def test_arithmetic() -> None:
    one, share, size = Amount(Fraction(1)), Amount(Fraction(1, 2), "%"), Amount(Fraction(1024), "KiB")
    assert combine(share, "*", size) == Amount(Fraction(512), "KiB")
    assert combine(size, "/", size) == one and combine(one, "-", share).unit == "%"
    for left, operator, right in ((one, "+", size), (size, "-", share), (size, "*", size), (one, "/", size)):
        with pytest.raises(UnitError):
            combine(left, operator, right)
    with pytest.raises(ZeroDivisionError):
        combine(one, "/", Amount(Fraction(0)))
    huge = Amount(Fraction(2) ** 16000)
    with pytest.raises(LimitError):
        combine(huge, "*", huge)
    for value in (Fraction(2) ** 2000, Fraction(1, 2) ** 2000):
        with pytest.raises(LimitError):
            to_number(value)


def test_positions() -> None:
    source = SourceText("a", "ab\r\ncd\n\nx")
    assert [source.position(offset) for offset in (0, 2, 4, 6, 7, 8, 9)] == [
        (1, 1), (1, 3), (2, 1), (2, 3), (3, 1), (4, 1), (4, 2),
    ]  # fmt: skip
    assert [source.line(number) for number in range(6)] == ["", "ab", "cd", "", "x", ""]
    assert source.span(1, 5) == Span("a", 1, 2, 2, 2) and source.span(4, 6) == Span("a", 2, 1, 2, 3)
    assert source.span(4, 7) == Span("a", 2, 1, 3, 1)
    for offset in range(len(source.text) + 1):
        assert source.offset(*source.position(offset)) == offset
    assert source.offset(99, 1) == len(source.text)


def test_decoding() -> None:
    assert decode(b"\xef\xbb\xbfa") == ("a", None) and decode(b"") == ("", None)
    text, damage = decode("ä".encode() + b"\xff\xfe")
    assert text == "ä\ufffd\ufffd" and damage is not None and damage.offset == 1


def test_how_targets_read() -> None:
    target = Target((Segment("layers", (IndexRange(0, 3), IndexRange(-1, -1))),), role="mlp")
    assert str(target) == "layers[0..3,-1].@mlp" and not target.is_outright
    assert Target((Segment("a"), Segment("b"))).is_outright
    assert str(Target(regex="a/b")) == r"/a\/b/" and Target(regex=r"a\/b") == Target(regex="a/b")
    assert Adapt((target,), 4) == Adapt((Target(target.segments, "mlp", span=Span("x", 1, 1, 1, 2)),), 4)
