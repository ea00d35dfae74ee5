"""Expectations: what people call the terminals of the grammar that may stand in a place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from lorakit.language.suggestions import listed
from lorakit.language.syntax import Word
from lorakit.language.words import KEYWORDS, Keyword

# How far back the keyword of a name may lie
_SIGHT = 60

# A terminal, and what a reader calls it; a message names several in this order
_TERMINALS = (
    ("TARGET", "a target"),
    ("NUMBER", "a number"),
    ("INTEGER", "a whole number"),
    ("STRING", "a string in double quotes"),
    ("TRUE", "`true` or `false`"),
    ("_LSQB", "a list in brackets"),
    ("DISTRIBUTION", "the name of a distribution"),
    ("VERSION", "a version"),
    ("COMPARISON", "`<`, `<=`, `>`, `>=`, `==` or `!=`"),
    ("_EQUAL", "`=`"),
    ("_AT_LEAST", "`>=`"),
    ("_COMMA", "`,`"),
    ("_RPAR", "`)`"),
    ("_RSQB", "`]`"),
    ("RANK", "a clause"),
    ("RBRACE", "`}`"),
    ("ADAPT", "a statement"),
)


def _name_behind(keyword: Keyword) -> str:
    if keyword.plugin is not None:
        return f"{'an' if keyword.plugin.noun[0] in 'aeiou' else 'a'} {keyword.plugin.noun}"
    return listed(keyword.choices)


# What a name is, by the keyword or bracket that it stands behind
_NAMES: Mapping[str, str] = {
    **{keyword.terminal: _name_behind(keyword) for keyword in KEYWORDS.values() if keyword.plugin or keyword.choices},
    "LET": "a name",
    "REQUIRE": "a quantity",
    "_LPAR": "an option",
}


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
        if token.type == "_RPAR":
            closed += 1
        elif token.type == "_GROUP":
            closed -= 1
        elif token.type == "_LPAR":
            closed -= 1
            if closed < 0:
                return "_LPAR"
        elif token.type in _NAMES:
            return token.type
    return ""
