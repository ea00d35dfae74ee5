"""Hypothesis strategies: any Spec that can be written, and any way to write a text that means the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from lorakit.language.parser import parse_syntax
from lorakit.language.source import SourceText
from lorakit.language.spec import Spec
from lorakit.language.statements import (
    Adapt,
    Expression,
    IndexRange,
    Number,
    Operation,
    Optimizer,
    PluginCall,
    Quantity,
    Quantize,
    Require,
    Segment,
    Step,
    Target,
    Train,
)
from lorakit.language.syntax import Word
from lorakit.language.words import CLAUSES

WORDS = st.sampled_from(
    ["q_proj", "rank", "adapt", "layers", "0", "12", "a-b", "größe", "x", "double", "let", "true", "A1", "_"]
)
NAMES = st.one_of(WORDS, st.sampled_from(["*", "**", "*_proj", "q*", "*a*"]))
POSITIVE = st.floats(min_value=1e-300, max_value=1e300, allow_nan=False)


@st.composite
def ranges(draw: st.DrawFn) -> IndexRange:
    first, last = draw(st.integers(-999, 999)), draw(st.integers(-999, 999))
    if (first < 0) == (last < 0) and first > last:
        first, last = last, first
    return IndexRange(first, last)


RANGES = st.lists(ranges(), max_size=3).map(tuple)
SEGMENTS = st.builds(
    lambda name, indices: Segment(name, () if name == "**" else indices), NAMES, st.one_of(st.just(()), RANGES)
)
REGEXES = st.sampled_from([".*q_proj", r"model\.layers\.\d+", "a/b", r"[^/#;\"]+\\", "(a|b) c", r"\/x"])
TARGETS = st.one_of(
    st.builds(lambda segments: Target(tuple(segments)), st.lists(SEGMENTS, min_size=1, max_size=4)),
    st.builds(
        lambda segments, role: Target(tuple(segments), role=role),
        st.lists(SEGMENTS, max_size=2),
        st.sampled_from(["linear", "mlp", "norm", "head"]),
    ),
    st.builds(
        lambda segments, name: Target(tuple(segments), class_name=name),
        st.lists(SEGMENTS, max_size=2),
        st.sampled_from(["Conv1D", "Linear", "rank"]),
    ),
    st.builds(lambda regex: Target(regex=regex), REGEXES),
)
LISTS = st.lists(TARGETS, min_size=1, max_size=4).map(tuple)
SCOPES: dict[str, Any] = {
    "layers": RANGES,
    "excepts": st.one_of(st.just(()), LISTS),
    "optional": st.booleans(),
}
STRINGS = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=8)
NUMBERS = st.one_of(st.integers(-(10**18), 10**18), st.floats(allow_nan=False, allow_infinity=False))
OPTIONS: dict[str, Any] = {
    "count": st.integers(-(10**12), 10**12),
    "scale": NUMBERS,
    "label": STRINGS,
    "flag": st.booleans(),
    "pair": st.tuples(NUMBERS, NUMBERS),
    "many": st.lists(st.integers(-99, 99), min_size=2, max_size=4).map(tuple),
    "kind": st.sampled_from(["even", "odd"]),
    "room": st.integers(0, 2**50),
}
WIDE = st.builds(
    lambda options, double: PluginCall("wide", tuple(options.items()), double),
    st.fixed_dictionaries({}, optional=OPTIONS),
    st.booleans(),
)
QUANTIZERS = st.one_of(st.just(PluginCall("nf4", (), True)), st.just(PluginCall("int8")), WIDE)
INITIALIZERS = st.sampled_from(
    [PluginCall("gaussian"), PluginCall("gaussian", (("sigma", 0.02),)), PluginCall("strict", (("level", 3),))]
)
ADAPTS = st.builds(
    Adapt,
    LISTS,
    st.integers(1, 10**6),
    alpha=st.none() | POSITIVE,
    scaling=st.sampled_from(["standard", "rslora"]),
    dropout=st.floats(0, 1, exclude_max=True),
    init=INITIALIZERS,
    quant=st.none() | QUANTIZERS,
    dtype=st.sampled_from([None, "bf16", "fp16", "fp32"]),
    bias=st.sampled_from(["none", "adapter"]),
    lr=st.none() | POSITIVE,
    lr_ratio=st.none() | POSITIVE,
    paged=st.booleans(),
    **SCOPES,
)
RANKLESS = st.builds(lambda targets: Adapt(targets, method=PluginCall("rankless")), LISTS)
RULES = st.one_of(
    ADAPTS,
    RANKLESS,
    st.builds(Quantize, LISTS, st.none() | QUANTIZERS, **SCOPES),
    st.builds(Train, LISTS, st.none() | POSITIVE, **SCOPES),
)
OPTIMIZERS = st.builds(
    Optimizer,
    st.sampled_from([PluginCall("sgd"), PluginCall("adamw", (("betas", (0.9, 0.95)), ("eps", 1e-6)))]),
    st.none() | POSITIVE,
    st.booleans(),
)
COUNTS = st.none() | st.integers(1, 10**9)
STEPS = st.builds(Step, COUNTS, COUNTS, st.sampled_from([None, "bf16", "fp16", "fp32"]))
SHARES = st.recursive(
    st.one_of(
        st.just(Quantity("trainable")),
        st.builds(Number, st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6), st.sampled_from(["", "%"])),
    ),
    lambda inner: st.builds(Operation, st.sampled_from("+-*"), inner, inner),
    max_leaves=6,
)
BYTES: st.SearchStrategy[Expression] = st.one_of(
    st.just(Quantity("peak_memory")),
    st.builds(Number, st.integers(0, 10**6), st.sampled_from(["B", "KB", "GiB", "TiB"])),
    st.builds(Operation, st.just("+"), st.just(Quantity("peak_memory")), st.just(Number(1.5, "MB"))),
)
COMPARISONS = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
REQUIRES = st.builds(Require, SHARES, COMPARISONS, SHARES) | st.builds(Require, BYTES, COMPARISONS, BYTES)
SPECS = st.builds(
    Spec,
    st.lists(RULES, max_size=4).map(tuple),
    st.none() | OPTIMIZERS,
    st.none() | STEPS,
    st.lists(REQUIRES, max_size=2).map(tuple),
    st.lists(st.sampled_from([("lark", None), ("lark", "1.0")]), max_size=1).map(tuple),
)

_BLANKS = st.sampled_from(["", " ", "\t", "  "])
_SOME = st.sampled_from([" ", "\t", "  "])
_FREE = st.sampled_from(["", " ", "\n", "\r\n"])
_FREE_COMMENTS = _FREE | st.sampled_from([" # c\n", "# a\n\n  # b\n"])
_ENDS = st.sampled_from(["\n", ";", " ; \n", "\r\n"])
_END_COMMENTS = _ENDS | st.sampled_from(["  # comment\n", "\n\n\n# own\n\n", "\n# one\n# two\n"])
_CLAUSES = frozenset(word.upper() for word in CLAUSES)
_WITHOUT_BLOCK = ("REQUIRE", "USE", "LET", "INCLUDE")


@st.composite
def writings(draw: Callable[[Any], Any], text: str, plain: bool = False) -> str:
    """Return a text that means the same: other blanks and ends of lines; unless `plain`, comments and blocks too."""
    statements: list[list[Word]] = [[]]
    for word in parse_syntax(SourceText("", text)).tokens:
        if word.type == "_END":
            statements.append([])
        else:
            statements[-1].append(word)
    ends = _ENDS if plain else _END_COMMENTS
    result = str(draw(ends))
    for words in filter(None, statements):
        starts = [index for index, word in enumerate(words) if index and word.type in _CLAUSES]
        opens = None
        if not plain and words[0].type not in _WITHOUT_BLOCK:
            opens = draw(st.sampled_from([None, *starts, len(words)]))
        result += _statement(draw, words, text, opens, plain) + draw(ends)
    return result


def _statement(draw: Callable[[Any], Any], words: Sequence[Word], text: str, opens: int | None, plain: bool) -> str:
    """Return a statement, with a block that opens before the word of this index, which begins a clause or ends it."""
    result, depth = "", 0
    for index, word in enumerate(words):
        if index == opens:
            result += draw(_SOME) + "{" + draw(_END_COMMENTS | _BLANKS)
        elif opens is not None and index > opens and word.type in _CLAUSES:
            result += draw(_END_COMMENTS | _SOME)
        elif index:
            result += _gap(draw, words[index - 1], word, depth, text, plain)
        depth += (word.type in ("_GROUP", "_LPAR", "_LSQB")) - (word.type in ("_RPAR", "_RSQB"))
        result += word
    if opens == len(words):
        result += draw(_SOME) + "{"
    return result + (draw(_END_COMMENTS | _BLANKS) + "}" if opens is not None else "")


def _gap(draw: Callable[[Any], Any], before: Word, word: Word, depth: int, text: str, plain: bool) -> str:
    if before.type == "_COMMA" or depth:
        return str(draw(_FREE if plain else _FREE_COMMENTS))
    apart = text[before.end : word.start] != "" and "COMPARISON" not in (before.type, word.type)
    return str(draw(_SOME if apart else _BLANKS))
