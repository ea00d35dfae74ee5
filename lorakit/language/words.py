"""The words of the language: one table that the parser's complaints, the checks, the printer and the editor read.

A new clause is a row here, a section of the page `words.md`, a word in the grammar, of which `compiling` makes tables,
and in its highlighting, and a field in `statements`; `takes` says how its value is read (in `clauses`) and printed (in
`printer`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# What plugins are, one registry each
PLUGINS = ("quantizer", "initializer", "optimizer", "method")

# what `quantize` says in the place of a quantizer, of modules that stay as they are
NONE = "none"


@dataclass(frozen=True, slots=True)
class Keyword:
    """A word of the language, by itself or with what stands behind it.

    A clause names the `statements` that take it. What stands behind the word, of the kind that it `takes`, `fills` a
    field of the Spec, which is called as the word is unless this says another. A name is one of the `choices`, if any.
    `without` is the word that says, in a plugin's place, that there is none: the field stays as it is by default.
    """

    word: str
    statements: tuple[str, ...] = ()
    takes: str = ""
    choices: tuple[str, ...] = ()
    fills: str = ""
    without: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fills", self.fills or self.word)

    @property
    def terminal(self) -> str:
        """What the grammar calls it."""
        return self.word.upper()

    @property
    def plugin(self) -> str:
        """What kind of plugin the name behind it is that of, empty where of none."""
        return self.takes if self.takes in PLUGINS else ""


def _by_word(*keywords: Keyword) -> Mapping[str, Keyword]:
    return {keyword.word: keyword for keyword in keywords}


_ADAPT, _RULES, _STEP = ("adapt",), ("adapt", "quantize", "train"), ("step",)

STATEMENTS = _by_word(
    Keyword("adapt"),
    Keyword("quantize", takes="quantizer", fills="quant", without=NONE),
    Keyword("train"),
    Keyword("optimizer", takes="optimizer", fills="call"),
    Keyword("step"),
    Keyword("let"),
    Keyword("include"),
    Keyword("require"),
    Keyword("use"),
)

# in the order in which a statement is printed
CLAUSES = _by_word(
    Keyword("method", _ADAPT, "method"),
    Keyword("rank", _ADAPT, "rank"),
    Keyword("alpha", _ADAPT, "positive"),
    Keyword("scaling", _ADAPT, "choice", ("standard", "rslora")),
    Keyword("dropout", _ADAPT, "probability"),
    Keyword("init", _ADAPT, "initializer"),
    Keyword("quant", _ADAPT, "quantizer"),
    Keyword("dtype", _ADAPT, "choice", ("bf16", "fp16", "fp32")),
    Keyword("bias", _ADAPT, "choice", ("none", "adapter")),
    Keyword("lr", ("adapt", "train", "optimizer"), "positive"),
    Keyword("lr_ratio", _ADAPT, "positive"),
    Keyword("paged", ("adapt", "optimizer"), "flag"),
    Keyword("layers", _RULES, "ranges"),
    Keyword("except", _RULES, "targets", fills="excepts"),
    Keyword("optional", _RULES, "flag"),
    Keyword("batch", _STEP, "count"),
    Keyword("tokens", _STEP, "count"),
    Keyword("memory", _STEP, "bytes"),
    Keyword("compute", _STEP, "choice", ("bf16", "fp16", "fp32")),
    Keyword("capture", _STEP, "flag"),
)

KEYWORDS: Mapping[str, Keyword] = {
    **STATEMENTS,
    **CLAUSES,
    **_by_word(Keyword("double"), Keyword("true"), Keyword("false")),
}

STATEMENT_TERMINALS = frozenset(keyword.terminal for keyword in STATEMENTS.values())
CLAUSE_TERMINALS = frozenset(keyword.terminal for keyword in CLAUSES.values())

# Clauses of `adapt` that are settings of its method: each method says which of them it takes
SETTINGS = frozenset({"rank", "alpha", "scaling", "dropout", "init", "lr_ratio"})

# What lorakit knows only the words of so far, each with what to write instead
NOT_YET = {
    "compute fp8": "write `compute bf16`",
}

# What `require` compares, each with what it measures: a share (`%`), bytes (`B`) or a plain number (empty)
QUANTITIES: Mapping[str, str] = MappingProxyType({"trainable": "%", "peak_memory": "B"})

# as the grammar says NAME
_NAME = re.compile(r"[^\W\d]\w*")


def clauses_of(statement: str) -> Mapping[str, Keyword]:
    """Return the clauses that a statement takes."""
    return {word: one for word, one in CLAUSES.items() if statement in one.statements}


def name_fault(name: str) -> str:
    """Return why a plugin cannot be called so in a spec, or an empty string where it can."""
    if not _NAME.fullmatch(name):
        return "a name is letters, digits and underscores, and begins with no digit"
    if name in KEYWORDS:
        return f"`{name}` is a word of the language"
    if name == NONE:
        return f"`{name}` says that modules stay as they are"
    return ""
