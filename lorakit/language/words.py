"""The words of the language, and what people call the terminals of its grammar."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set

from lorakit.language.syntax import Word

STATEMENTS = ("adapt", "quantize", "train", "optimizer", "step", "let", "include", "require", "use")

CLAUSES = (
    "rank", "alpha", "scaling", "dropout", "method", "init", "quant", "dtype", "bias", "lr", "lr_ratio", "paged",
    "layers", "except", "optional", "batch", "tokens", "memory", "compute", "capture",
)  # fmt: skip

# Clauses of which lorakit knows only the word so far, each with what to write instead
NOT_YET = {
    "memory": "leave it out; `require peak_memory <= 24GiB` says what a step may need",
    "capture": "leave it out: a step runs one operation after the other",
}

# as the grammar says NAME
_NAME = re.compile(r"[^\W\d]\w*")

# What a name is, by the keyword or bracket that it stands behind
_NAMES = {
    "QUANTIZE": "a quantizer",
    "QUANT": "a quantizer",
    "OPTIMIZER": "an optimizer",
    "METHOD": "a method",
    "INIT": "an initializer",
    "SCALING": "`standard` or `rslora`",
    "DTYPE": "`bf16`, `fp16` or `fp32`",
    "BIAS": "`none` or `adapter`",
    "COMPUTE": "`bf16`, `fp16` or `fp32`",
    "LET": "a name",
    "REQUIRE": "a quantity",
    "_LPAR": "an option",
}
# How far back the keyword of a name may lie
_SIGHT = 60

# A terminal, and what a reader calls it; a message names several in this order
_TERMINALS = (
    ("TARGET", "a target"),
    ("NUMBER", "a number"),
    ("INTEGER", "a whole number"),
    ("STRING", "a string in double quotes"),
    ("TRUE", "`true` or `false`"),
    ("LSQB", "a list in brackets"),
    ("DISTRIBUTION", "the name of a distribution"),
    ("VERSION", "a version"),
    ("COMPARISON", "`<`, `<=`, `>`, `>=`, `==` or `!=`"),
    ("_EQUAL", "`=`"),
    ("_AT_LEAST", "`>=`"),
    ("_COMMA", "`,`"),
    ("RPAR", "`)`"),
    ("RSQB", "`]`"),
    ("RANK", "a clause"),
    ("RBRACE", "`}`"),
    ("ADAPT", "a statement"),
)


def expectation(accepted: Set[str], keyword: str) -> str:
    """Return in words what may stand in a place, given the terminals there and the keyword that it belongs to."""
    words = [word for terminal, word in _TERMINALS if terminal in accepted]
    if "NAME" in accepted and ("NUMBER" not in accepted or keyword == "REQUIRE"):
        words.insert(0, _NAMES.get(keyword, "a name"))
    if "_END" in accepted and "ADAPT" not in accepted and "RBRACE" not in accepted:
        words.append("the end of the line")
    if len(words) < 2:
        return "".join(words) or "something else"
    return f"{', '.join(words[:-1])} or {words[-1]}"


def expected_name(tokens: Sequence[Word]) -> str:
    """Return the terminal that says what a name behind these tokens would be: a keyword, or the bracket of options."""
    closed = 0
    for token in reversed(tokens[-_SIGHT:]):
        if token.type == "RPAR":
            closed += 1
        elif token.type == "LPAR":
            closed -= 1
        elif token.type == "_LPAR":
            closed -= 1
            if closed < 0:
                return "_LPAR"
        elif token.type in _NAMES:
            return token.type
    return ""


def name_fault(name: str) -> str:
    """Return why a plugin cannot be called so in a spec, or an empty string where it can."""
    if not _NAME.fullmatch(name):
        return "a name is letters, digits and underscores, and begins with no digit"
    if name in (*STATEMENTS, *CLAUSES, "double", "true", "false"):
        return f"`{name}` is a word of the language"
    return ""
