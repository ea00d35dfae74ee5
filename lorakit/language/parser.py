"""Text to syntax tree. Where a statement or a clause cannot be read, reading goes on at the next one.

Recovery is that of yacc: the grammar says where the token ERROR may stand; the parser gives up the states in which it
may not, puts ERROR in the place of what it could not read, and skips to the end of the statement or clause.
"""

from __future__ import annotations

import functools
import re
from importlib import resources
from pathlib import Path
from typing import Any

from lark import Lark
from lark.exceptions import UnexpectedInput, UnexpectedToken
from lark.parsers.lalr_interactive_parser import InteractiveParser

from lorakit.language.builder import Builder
from lorakit.language.complaints import Scene, complain, complain_overrun
from lorakit.language.diagnostics import Diagnostic
from lorakit.language.source import SourceText
from lorakit.language.syntax import SyntaxTree, Word
from lorakit.language.words import CLAUSES, STATEMENTS

# Beyond this many a file is not a spec with mistakes but something else
MAX_SYNTAX_ERRORS = 1000

_OPENING = {"LPAR": "RPAR", "_LPAR": "RPAR", "LSQB": "RSQB"}
_BRACKETS = frozenset((*_OPENING, "RPAR", "RSQB", "LBRACE", "RBRACE"))
_SKIPPED = re.compile(r'"(?:\\.|[^"\\\n])*"?|#[^\n]*|[()\[\]{};\n]')
_BEGINNING = re.compile(r"[ \t\r\f]*(\w+|\})")


def parse_syntax(source: SourceText, start: str = "start") -> SyntaxTree:
    """Return the syntax tree of a text, with a diagnostic for each statement or clause that could not be read."""
    return _Reading(source, start).run()


def grammar_text() -> str:
    """Return the grammar of the language, as it is installed or, in a source checkout, beside the package."""
    try:
        return (resources.files("lorakit.grammar") / "lorakit.lark").read_text("utf-8")
    except (ModuleNotFoundError, FileNotFoundError):
        return (Path(__file__).parents[2] / "grammar" / "lorakit.lark").read_text("utf-8")


class _Newlines:
    """Makes the contextual lexer read `_END` everywhere; whether it says anything is decided by the brackets."""

    always_accept = ("_END",)

    def process(self, stream: Any) -> Any:
        return stream


@functools.cache
def _lark() -> Lark:
    return Lark(
        grammar_text(),
        parser="lalr",
        lexer="contextual",
        start=["start", "value"],
        transformer=Builder(),
        postlex=_Newlines(),
        maybe_placeholders=False,
    )


class _Reading:
    """One text being read."""

    def __init__(self, source: SourceText, start: str) -> None:
        self.source = source
        self.text = source.text
        interactive = _lark().parse_interactive(self.text, start=start)
        self.state = interactive.parser_state
        self.lexer = interactive.lexer_thread
        self.tokens: list[Word] = []
        self.opened: list[Word] = []
        self.brace: Word | None = None
        self.unit: Word | None = None
        self.statement: Word | None = None
        self.diagnostics: list[Diagnostic] = []

    def run(self) -> SyntaxTree:
        result: Any = None
        while result is None:
            try:
                self._read()
                result = self.state.feed_token(Word("$END", "", len(self.text), end_pos=len(self.text)), True)
            except UnexpectedInput as error:
                if not self._recover(error):
                    break
        statements = result if isinstance(result, tuple) else (result,) if result is not None else ()
        return SyntaxTree(self.source, statements, tuple(self.tokens), tuple(self.diagnostics))

    def _read(self) -> None:
        """Feed tokens to the parser up to the end of the text. Raises: UnexpectedInput."""
        feed, tokens, opened = self.state.feed_token, self.tokens, self.opened
        token: Word
        for token in self.lexer.lex(self.state):  # type: ignore[no-untyped-call]
            kind = token.type
            if kind == "_END":
                if (opened or (tokens and tokens[-1].type == "_COMMA")) and ";" not in token:
                    continue
                feed(token)
                self.unit = None
                if self.brace is None:
                    self.statement = None
            else:
                feed(token)
                if self.unit is None:
                    self.unit = token
                    if self.statement is None:
                        self.statement = token
                if kind in _BRACKETS:
                    self._track(token)
            tokens.append(token)

    def _track(self, bracket: Word) -> None:
        if bracket.type in _OPENING:
            self.opened.append(bracket)
        elif bracket.type == "LBRACE":
            self.brace, self.unit = bracket, None
        elif bracket.type == "RBRACE":
            self.brace = None
        else:
            self.opened.pop()

    def _recover(self, error: UnexpectedInput) -> bool:
        """Say what is wrong, put ERROR in its place and return whether reading can go on behind it."""
        offset: int = error.token.start_pos if isinstance(error, UnexpectedToken) else error.pos_in_stream  # type: ignore[assignment]
        overrun = self._overrun(offset)
        scene = Scene(self.source, offset, self._accepted(), self.tokens, self.brace)
        complaint = complain_overrun(overrun[0]) if overrun else complain(scene)
        self.diagnostics.append(complaint.diagnostic(self.source))
        resume = overrun[1] if overrun else self._skip(offset)
        if len(self.diagnostics) >= MAX_SYNTAX_ERRORS:
            resume = len(self.text)
        while self.tokens and self.tokens[-1].start_pos >= resume:
            self.tokens.pop()
        start = min(self.unit.start_pos if self.unit is not None else offset, resume)
        unread = Word("ERROR", self.text[start:resume], start, end_pos=resume)
        if not self._put_error(unread):
            return False
        self.tokens.append(unread)
        if self.brace is not None and (resume == len(self.text) or (overrun and overrun[0] is self.brace)):
            self.state.feed_token(Word("RBRACE", "", resume, end_pos=resume))
            self.brace = None
        self.opened.clear()
        self.lexer.state.line_ctr.char_pos = resume  # type: ignore[union-attr]
        return True

    def _put_error(self, token: Word) -> bool:
        """Feed ERROR, giving up states until one takes it, and return whether one does; a single value has none."""
        state = self.state
        while True:
            try:
                state.feed_token(token)
                return True
            except UnexpectedToken:
                if not state.value_stack:
                    return False
                state.state_stack.pop()
                state.value_stack.pop()

    def _accepted(self) -> set[str]:
        accepted: set[str] = InteractiveParser(None, self.state, self.lexer).accepts()  # type: ignore[no-untyped-call]
        return accepted

    def _overrun(self, offset: int) -> tuple[Word, int] | None:
        """Return what made reading run on into the next statement, and where that one's line begins.

        That is a bracket, a brace or a comma behind which the statement was to go on: nothing that can stand there
        looks like the beginning of a statement.
        """
        if offset == len(self.text):
            left_open = self.opened[-1] if self.opened else self.brace
            return (left_open, offset) if left_open is not None else None
        line_start = self.text.rfind("\n", 0, offset) + 1
        first = _BEGINNING.match(self.text, line_start)
        if first is None or not (first.start(1) == offset or self.tokens[-1].start_pos == first.start(1)):
            return None
        before = [token for token in self.tokens[-2:] if token.start_pos < line_start]
        culprit = (
            self.opened[-1] if self.opened else before[-1] if before and before[-1].type == "_COMMA" else self.brace
        )
        if culprit is None or culprit.start_pos >= line_start:
            return None
        if first[1] in STATEMENTS:
            if culprit is self.brace and not self._outdented(first.start(1)):
                return None
        elif self.brace is None or culprit is self.brace or first[1] not in (*CLAUSES, "}"):
            return None
        return culprit, line_start - 1

    def _outdented(self, offset: int) -> bool:
        assert self.statement is not None
        return self.source.position(offset)[1] <= self.source.position(self.statement.start_pos)[1]

    def _skip(self, offset: int) -> int:
        """Return where the statement or clause that holds this offset ends."""
        depth, braces = len(self.opened), 0
        for mark in _SKIPPED.finditer(self.text, offset):
            match mark[0][0]:
                case "(" | "[":
                    depth += 1
                case ")" | "]":
                    depth = max(0, depth - 1)
                case "{" if self.brace is None and not braces and self._readable_block():
                    return mark.start()
                case "{":
                    braces += 1
                case "}" if braces:
                    braces -= 1
                case "}" if self.brace is not None:
                    return mark.start()
                case ";" if not braces:
                    return mark.start()
                case "\n" if not braces and (not depth or self._begins(mark.end())):
                    return mark.start()
        return len(self.text)

    def _begins(self, line_start: int) -> bool:
        first = _BEGINNING.match(self.text, line_start)
        return first is not None and (
            first[1] in STATEMENTS or (self.brace is not None and first[1] in (*CLAUSES, "}"))
        )

    def _readable_block(self) -> bool:
        return self.statement is not None and self.statement.value in STATEMENTS
