"""The scene of a syntax error: what was read before, and how people call what could have followed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

from lorakit.diagnostics import Code, Diagnostic
from lorakit.language.source import SourceText
from lorakit.language.suggestions import listed
from lorakit.language.syntax import Word
from lorakit.language.words import KEYWORDS

_FOUND = re.compile(r'\w+|"(?:\\.|[^"\\\n])*"?|\'[^\'\n]*\'|\.\.|[<>=!]=|.', re.DOTALL)

# How far back the keyword of a name may lie
_SIGHT = 60

# A terminal, and what a reader calls it; a message names several in this order
_TERMINALS = {
    "TARGET": "a target", "NUMBER": "a number", "INTEGER": "a whole number", "STRING": "a string in double quotes",
    "TRUE": "`true` or `false`", "_LSQB": "a list in brackets", "DISTRIBUTION": "the name of a distribution",
    "VERSION": "a version", "COMPARISON": "`<`, `<=`, `>`, `>=`, `==` or `!=`", "_EQUAL": "`=`", "_AT_LEAST": "`>=`",
    "_COMMA": "`,`", "_RPAR": "`)`", "_RSQB": "`]`", "RANK": "a clause", "RBRACE": "`}`", "ADAPT": "a statement",
}  # fmt: skip

_ARTICLES = {"quantizer": "a", "initializer": "an", "optimizer": "an", "method": "a"}

# What a name is, by the keyword or bracket that it stands behind
_NAMES: Mapping[str, str] = {
    **{word.terminal: listed(word.choices) for word in KEYWORDS.values() if word.choices},
    **{word.terminal: f"{_ARTICLES[word.takes]} {word.takes}" for word in KEYWORDS.values() if word.plugin},
    "LET": "a name",
    "REQUIRE": "a quantity",
    "_LPAR": "an option",
}


@dataclass(frozen=True)
class Scene:
    """The place at which reading stopped: what was read before, and which terminals could have followed."""

    source: SourceText
    offset: int
    accepted: Set[str]
    tokens: Sequence[Word]
    brace: Word | None

    @cached_property
    def found(self) -> str:
        """The word that stands there, empty at the end of a line."""
        match = _FOUND.match(self.source.text, self.offset)
        return match[0] if match and match[0] != "\n" else ""

    @property
    def end(self) -> int:
        return self.offset + len(self.found)

    @cached_property
    def previous(self) -> Word | None:
        """The token before, unless that ended a statement."""
        last = self.tokens[-1] if self.tokens else None
        return last if last is not None and last.type not in ("_END", "LBRACE", "ERROR") else None

    @property
    def behind_comma(self) -> bool:
        """Whether the token before is the last of a list."""
        return len(self.tokens) > 1 and self.tokens[-2].type == "_COMMA"

    @cached_property
    def keyword(self) -> str:
        """The terminal that says what a name would be here: a keyword, or the bracket of options."""
        closed = 0
        for token in reversed(self.tokens[-_SIGHT:]):
            closed += (token.type == "_RPAR") - (token.type in ("_GROUP", "_LPAR"))
            if token.type in _NAMES and (token.type != "_LPAR" or closed < 0):
                return token.type
        return ""

    @property
    def expected(self) -> str:
        """What could have followed, in words, and behind what."""
        accepted = self.accepted
        words = [word for terminal, word in _TERMINALS.items() if terminal in accepted]
        if "NAME" in accepted and ("NUMBER" not in accepted or self.keyword == "REQUIRE"):
            words.insert(0, _NAMES.get(self.keyword, "a name"))
        if "_END" in accepted and accepted.isdisjoint({"ADAPT", "RBRACE"}):
            words.append("the end of the line")
        any_of = " or ".join(filter(None, (", ".join(words[:-1]), *words[-1:]))) or "something else"
        return f"expected {any_of}" + (f" behind {shown(self.previous)}" if self.previous is not None else "")

    def complain(
        self,
        code: Code,
        message: str,
        near: str | None = None,
        *notes: str,
        at: int | None = None,
        end: int | None = None,
    ) -> Diagnostic:
        """Return a complaint about the words found, or about those from `at` to `end`."""
        start, end = self.offset if at is None else at, self.end if end is None else end
        return self.source.diagnostic(code, message, start, end, near, notes)


def shown(words: str | None, longest: int = 40) -> str:
    """Return words from the source in backquotes, shortened where they are long."""
    words = (words or "").split("\n", 1)[0]
    return f"`{words}`" if len(words) <= longest else f"`{words[:longest]}…`"
