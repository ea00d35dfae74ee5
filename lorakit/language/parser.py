"""Text to syntax tree. Where a statement or a clause cannot be read, reading goes on at the next one.

Recovery is that of yacc: the grammar says where the token ERROR may stand; the parser gives up the states in which it
may not, puts ERROR in the place of what it could not read, and skips to the end of the statement or clause.
"""

from __future__ import annotations

import re
from typing import Any

from lorakit.diagnostics import Code, Diagnostic, diagnostic_at
from lorakit.language.machine import Machine, ignored, matcher
from lorakit.language.source import SourceText
from lorakit.language.syntax import CLOSING, MAX_DEPTH, NESTING, OPENING, BrokenNode, StatementNode, SyntaxTree, Word
from lorakit.language.words import CLAUSES, STATEMENTS

# Beyond this many a file is not a spec with mistakes but something else
MAX_SYNTAX_ERRORS = 1000

_BRACKETS = frozenset((*OPENING, *CLOSING, "LBRACE", "RBRACE"))
_SKIPPED = re.compile(r'"(?:\\.|[^"\\\n])*"?|#[^\n]*|[()\[\]{};\n]')
_BEGINNING = re.compile(r"[ \t\r\f]*(\w+|\})")


def parse_syntax(source: SourceText, start: str = "start") -> SyntaxTree:
    """Return the syntax tree of a text, with a diagnostic for each statement or clause that could not be read."""
    return _Reading(source, start).run()


class _Reading:
    """One text being read. A unit is a statement up to its block, or a clause in a block."""

    def __init__(self, source: SourceText, start: str) -> None:
        self.source = source
        self.start = start
        self.text = source.text
        self.machine = Machine(start)
        self.position = 0
        self.base = len(self.machine.states)
        self.tokens: list[Word] = []
        self.opened: list[Word] = []
        self.brace: Word | None = None
        self.unit: Word | None = None
        self.statement: Word | None = None
        self.diagnostics: list[Diagnostic] = []

    def run(self) -> SyntaxTree:
        end = Word("", "$END", len(self.text))
        while not (self._read() and self.machine.feed("$END", end)):
            if not self._recover(self.position):
                return SyntaxTree(self.source, (), tuple(self.tokens), tuple(self.diagnostics))
        result = self.machine.values[0]
        if self.start == "start":
            statements = tuple(map(self._shallow, result))
        else:
            statements = () if self._nests(result) else (result,)
        return SyntaxTree(self.source, statements, tuple(self.tokens), tuple(self.diagnostics))

    def _shallow(self, statement: StatementNode) -> StatementNode:
        """Return a statement, or one that counts as unread in the place of what nests so deep."""
        if not self._nests(statement):
            return statement
        start, end = statement.start, statement.end
        unread = Word(self.text[start:end], "ERROR", start)
        return BrokenNode(start, end, unread, (unread,))

    def _nests(self, node: tuple[Any, ...]) -> bool:
        """Return whether something in a node nests deeper than every later walk may recurse, and report it."""
        waiting: list[tuple[Any, Any, int]] = [(node, node, 0)]
        while waiting:
            inner, outermost, depth = waiting.pop()
            if isinstance(inner, NESTING):
                outermost, depth = (outermost, depth + 1) if depth else (inner, 1)
            if depth > MAX_DEPTH:
                span = self.source.span(outermost.start, outermost.end)
                self.diagnostics.append(diagnostic_at(Code.LIMIT, f"this nests deeper than {MAX_DEPTH} levels", span))
                return True
            waiting += [(item, outermost, depth) for item in inner if isinstance(item, tuple)]
        return False

    def _read(self) -> bool:
        """Feed words to the machine and return whether it took them all; if not, `position` is that of the culprit."""
        text, tokens, opened = self.text, self.tokens, self.opened
        states, feed, skip = self.machine.states, self.machine.feed, ignored()
        while True:
            self.position = position = skip(text, self.position).end()  # type: ignore[union-attr]
            match = matcher(states[-1])(text, position)
            if match is None:
                return position == len(text)
            kind: str = match.lastgroup  # type: ignore[assignment]
            word = Word(match[0], kind, position)
            if kind == "_END":
                if (opened or (tokens and tokens[-1].type == "_COMMA")) and ";" not in word:
                    self.position = word.end
                    continue
                if not feed(kind, word):
                    return False
                self.unit = None
                if self.brace is None:
                    self.statement = None
                    self.base = len(states)
            else:
                if not feed(kind, word):
                    return False
                if self.unit is None:
                    self.unit = word
                    if self.statement is None:
                        self.statement = word
                if kind in _BRACKETS:
                    self._track(word)
            tokens.append(word)
            self.position = word.end

    def _track(self, bracket: Word) -> None:
        if bracket.type in OPENING:
            self.opened.append(bracket)
        elif bracket.type == "LBRACE":
            self.brace, self.unit = bracket, None
        elif bracket.type == "RBRACE":
            self.brace = None
        else:
            self.opened.pop()

    def _recover(self, offset: int) -> bool:
        """Say what is wrong, put ERROR in its place and return whether reading can go on behind it."""
        from lorakit.language.complaints import complain, complain_overrun
        from lorakit.language.scene import Scene

        overrun = self._overrun(offset)
        scene = Scene(self.source, offset, self.machine.accepted(), self.tokens, self.brace)
        self.diagnostics.append(complain_overrun(self.source, overrun[0]) if overrun else complain(scene))
        resume = overrun[1] if overrun else self._skip(offset)
        if len(self.diagnostics) >= MAX_SYNTAX_ERRORS:
            return False
        while self.tokens and self.tokens[-1].start >= resume:
            self.tokens.pop()
        start = min(self.unit.start if self.unit is not None else offset, resume)
        unread = Word(self.text[start:resume], "ERROR", start)
        if self.brace is None:
            self.machine.drop_to(self.base)
        while not self.machine.feed("ERROR", unread):
            if not self.machine.drop():
                return False
        self.tokens.append(unread)
        if self.brace is not None and (resume == len(self.text) or (overrun and overrun[0] is self.brace)):
            self.machine.feed("RBRACE", Word("", "RBRACE", resume))
            self.brace = None
        self.opened.clear()
        self.position = resume
        return True

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
        if first is None or not (first.start(1) == offset or self.tokens[-1].start == first.start(1)):
            return None
        before = [token for token in self.tokens[-2:] if token.start < line_start]
        culprit = (
            self.opened[-1] if self.opened else before[-1] if before and before[-1].type == "_COMMA" else self.brace
        )
        if culprit is None or culprit.start >= line_start:
            return None
        if first[1] in STATEMENTS:
            if culprit is self.brace and not self._outdented(first.start(1)):
                return None
        elif self.brace is None or culprit is self.brace or first[1] not in (*CLAUSES, "}"):
            return None
        return culprit, line_start - 1

    def _outdented(self, offset: int) -> bool:
        assert self.statement is not None
        return self.source.position(offset)[1] <= self.source.position(self.statement.start)[1]

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
        """Return whether a brace would open the block of the statement at hand, which has none yet."""
        known = self.statement is not None and self.statement in STATEMENTS
        return known and self.tokens[-1].type != "RBRACE"
