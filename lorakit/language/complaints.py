"""What to say about words that cannot be read where they stand.

`complain` asks one small rule after the other; the first that knows what the writer probably meant answers, and the
last always does.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

from lorakit.language.amounts import UNITS
from lorakit.language.codes import Code
from lorakit.language.diagnostics import Diagnostic, advised, at
from lorakit.language.source import SourceText
from lorakit.language.suggestions import nearest
from lorakit.language.syntax import Word
from lorakit.language.words import CLAUSES, STATEMENTS, expectation, expected_name

_FOUND = re.compile(r'\w+|"(?:\\.|[^"\\\n])*"?|\.\.|[<>=!]=|.', re.DOTALL)
_LOOSE_TARGET = re.compile(r"[^\s,;{}()\[\]#]*(?:\[[^\]\n]*\]?[^\s,;{}()\[\]#]*)*")
_LOOSE_NUMBER = re.compile(r"\.?[0-9](?:[eE][+-]|[\w.%])*")
_CLOSING = {"LPAR": ")", "_LPAR": ")", "LSQB": "]", "LBRACE": "}"}

# Characters that word processors and web pages put in the place of plain ones
_PLAIN = {
    "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": '"', "’": '"', "，": ",", "；": ";", "（": "(",
    "）": ")", "［": "[", "］": "]",
     "｛": "{", "｝": "}", "＝": "=", "＜": "<", "＞": ">", "＊": "*", "＋": "+", "／": "/", "：": ":",
    "＠": "@", "．": ".", "％": "%", "＃": "#", "–": "-", "—": "-", "−": "-", "×": "*", "÷": "/", "…": "..", "≤": "<=",
    "≥": ">=", "≠": "!=",
}  # fmt: skip


@dataclass(frozen=True)
class Complaint:
    """A diagnostic in the making, with offsets."""

    code: Code
    message: str
    start: int
    end: int
    near: str | None = None
    notes: tuple[str, ...] = ()

    def diagnostic(self, source: SourceText) -> Diagnostic:
        suggestion, notes = advised(self.near, self.notes)
        return at(self.code, self.message, source.span(self.start, self.end), suggestion=suggestion, notes=notes)


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
        if self.at_end:
            return ""
        match = _FOUND.match(self.source.text, self.offset)
        return match[0] if match else ""

    @property
    def at_end(self) -> bool:
        return self.source.text[self.offset : self.offset + 1] in ("", "\n")

    @property
    def end(self) -> int:
        return self.offset + len(self.found)

    @property
    def previous(self) -> Word | None:
        """The token before, unless that ended a statement."""
        if self.tokens and self.tokens[-1].type not in ("_END", "LBRACE", "ERROR"):
            return self.tokens[-1]
        return None

    @property
    def behind(self) -> str:
        return f" behind {shown(self.previous)}" if self.previous is not None else ""

    @property
    def expected(self) -> str:
        return expectation(self.accepted, expected_name(self.tokens))

    def complain(
        self, code: Code, message: str, near: str | None = None, *notes: str, end: int | None = None
    ) -> Complaint:
        """Return a complaint about the words found."""
        return Complaint(code, message, self.offset, self.end if end is None else end, near, notes)


def complain(scene: Scene) -> Complaint:
    """Return what is wrong in this place."""
    answers = (rule(scene) for rule in _RULES)
    return next(answer for answer in answers if answer is not None)


def complain_overrun(culprit: Word) -> Complaint:
    """Return the complaint about a bracket that is never closed, or a comma with nothing of its own behind it."""
    start, end = culprit.start_pos, culprit.end_pos
    if culprit.type == "_COMMA":
        return Complaint(
            Code.VALUE_EXPECTED, "expected something behind `,`, found a new statement", start, end, None,
            ("behind a comma a list goes on in the next line",),
        )  # fmt: skip
    message = f"`{culprit}` is never closed"
    return Complaint(Code.NEVER_CLOSED, message, start, end, None, (f"help: close it with `{_CLOSING[culprit.type]}`",))


def shown(words: str | None, longest: int = 40) -> str:
    """Return words from the source in backquotes, shortened where they are long."""
    words = (words or "").split("\n", 1)[0]
    return f"`{words}`" if len(words) <= longest else f"`{words[:longest]}…`"


def _character(scene: Scene) -> Complaint | None:
    character = scene.found[:1]
    if not character or (character.isascii() and character.isprintable()) or character.isalnum():
        return None
    name = unicodedata.name(character, "a control character")
    plain = _PLAIN.get(character)
    if plain is None and unicodedata.category(character) == "Zs":
        plain = " "
    notes = (f"help: write a plain `{plain}`",) if plain is not None else ()
    if plain == " ":
        notes = ("help: write a plain blank",)
    message = f"the character U+{ord(character):04X} ({name}) has no place here"
    return scene.complain(Code.BAD_CHARACTER, message, plain, *notes, end=scene.offset + 1)


def _string(scene: Scene) -> Complaint | None:
    if not scene.found.startswith('"'):
        return None
    if "TARGET" in scene.accepted:
        inner = scene.found.strip('"')
        return scene.complain(Code.BAD_TARGET, "targets are written without quotes", inner or None)
    if "STRING" not in scene.accepted:
        return None
    for escape in re.finditer(r"\\(.?)", scene.found[1:]):
        if escape[1] not in ('"', "\\"):
            start = scene.offset + 1 + escape.start()
            message = f"a string knows no escape {shown(escape[0])}"
            return Complaint(
                Code.BAD_STRING, message, start, start + len(escape[0]), None,
                ('the escapes are `\\"` for a quote and `\\\\` for a backslash',),
            )  # fmt: skip
    return scene.complain(
        Code.BAD_STRING, "this string is never closed", None, "a string ends on the line it begins on"
    )


def _target(scene: Scene) -> Complaint | None:
    previous, text, offset = scene.previous, scene.source.text, scene.offset
    adjacent = previous is not None and previous.type == "TARGET" and previous.end_pos == offset
    if previous is not None and adjacent and scene.found.startswith((".", "[", "@", ":", "/")):
        loose = _LOOSE_TARGET.match(text, previous.start_pos)
        end = max(loose.end() if loose else 0, offset + 1)
        if scene.found.startswith("["):
            return _range_complaint(scene, offset, end)
        return Complaint(Code.BAD_TARGET, *_bad_target(previous, text[offset:end]), previous.start_pos, end)
    if "TARGET" not in scene.accepted or not scene.found:
        return None
    if scene.found[0] == "/":
        if text.startswith("//", offset):
            return scene.complain(Code.BAD_TARGET, "this regex is empty", end=offset + 2)
        end = text.find("\n", offset)
        end = len(text) if end < 0 else end
        return scene.complain(Code.BAD_TARGET, "this regex is never closed with `/`", end=end)
    if scene.found[0] == "[" and "LSQB" not in scene.accepted:
        note = "help: leave out the brackets: targets are parted by commas"
        return scene.complain(Code.BAD_TARGET, "a list in brackets stands only behind `let NAME =`", None, note)
    if scene.found[0] in ".@:":
        loose = _LOOSE_TARGET.match(text, offset)
        end = loose.end() if loose else scene.end
        kinds = {".": "a segment", "@": "the name of a role", ":": "the name of a class"}
        message = f"expected {kinds[scene.found[0]]}" + (" behind " if scene.found[0] != "." else " before ")
        return scene.complain(Code.BAD_TARGET, f"{message}`{scene.found[0]}`", end=max(end, offset + 1))
    return None


def _bad_target(read: str, rest: str) -> tuple[str]:
    if rest[0] in "@:":
        kind = "role" if rest[0] == "@" else "class"
        return (f"a {kind} is a segment of its own: `{read}.{rest}`",)
    if rest[0] == "/":
        return ("a regex stands alone and looks at the whole path",)
    last = read.rpartition(".")[2]
    if last[0] in "@:":
        kind = "role" if last[0] == "@" else "class"
        return (f"a {kind} can only be the last segment of a target",)
    if rest.startswith(".."):
        return ("a target has no empty segment",)
    return ("expected a segment behind `.`",)


def _range_complaint(scene: Scene, start: int, end: int) -> Complaint:
    words = scene.source.text[start:end]
    notes = ("help: indices are written `[0..15]` or `[0,2,-1]`, both ends counted",)
    if re.search(r"\.\.\s*(?:[\],]|$)|[\[,]\s*\.\.", words):
        return Complaint(Code.BAD_RANGE, "a range needs both of its ends", start, end, None, notes)
    return Complaint(Code.BAD_RANGE, f"cannot read the indices {shown(words)}", start, end, None, notes)


def _number(scene: Scene) -> Complaint | None:
    previous, text, offset = scene.previous, scene.source.text, scene.offset
    if previous is not None and previous.type == "INTEGER" and scene.found == "..":
        return None
    if "INTEGER" in scene.accepted and previous is not None and scene.found and scene.found[0] in ".0123456789-":
        return Complaint(
            Code.BAD_RANGE, f"expected a whole number behind {shown(previous)}", offset, scene.end, None,
            ("help: ranges are written `0..15` or `0,2,-1`, both ends counted",),
        )  # fmt: skip
    if previous is not None and previous.type == "NUMBER":
        if scene.found in UNITS and scene.found:
            message = "a unit stands without a blank behind its number"
            return Complaint(Code.BAD_NUMBER, message, previous.start_pos, scene.end, f"{previous}{scene.found}")
        if previous.end_pos == offset and scene.found.startswith((".", "%")):
            loose = _LOOSE_NUMBER.match(text, previous.start_pos)
            return _bad_number(previous.start_pos, loose[0] if loose else previous + scene.found)
    loose = _LOOSE_NUMBER.match(text, offset)
    if loose is None or "NUMBER" not in scene.accepted:
        return None
    return _bad_number(offset, loose[0])


def _bad_number(start: int, words: str) -> Complaint:
    near, notes = None, ["numbers are written `16`, `2e-4`, `0.05`, `1%` or `24GiB`"]
    digits = re.match(r"[0-9.]+", words)
    unit = words[digits.end() :] if digits else ""
    known = {name.lower(): name for name in UNITS}.get(unit.lower())
    if digits and known:
        near = f"{digits[0]}{known}"
        notes.append("units are case-sensitive")
    elif words.startswith("."):
        near = f"0{words}"
    elif words.endswith("."):
        near = f"{words}0"
    elif "_" in words and words.replace("_", "").isdigit():
        near = words.replace("_", "")
    message = f"{shown(words)} is not a number"
    return Complaint(Code.BAD_NUMBER, message, start, start + len(words), near, tuple(notes))


def _statement(scene: Scene) -> Complaint | None:
    if "ADAPT" not in scene.accepted:
        return None
    found = scene.found
    if found == "{":
        return scene.complain(Code.UNEXPECTED, "`{` opens on the line of its statement")
    if found == "}":
        return scene.complain(Code.UNEXPECTED, "there is no block here that `}` could close")
    if found in CLAUSES or found == "double":
        kind = "a clause" if found != "double" else "part of a clause"
        message = f"`{found}` is {kind}, and stands on the line of its statement or in its `{{ }}` block"
        return scene.complain(Code.UNKNOWN_STATEMENT, message)
    if not found[:1].isalnum():
        return scene.complain(Code.UNKNOWN_STATEMENT, f"expected a statement, found {shown(found)}")
    near = nearest(found, STATEMENTS)
    note = f"a statement begins with {', '.join(STATEMENTS[:-1])} or {STATEMENTS[-1]}"
    return scene.complain(Code.UNKNOWN_STATEMENT, f"{shown(found)} is no statement", near, *(() if near else (note,)))


def _options(scene: Scene) -> Complaint | None:
    if expected_name(scene.tokens) != "_LPAR":
        return None
    previous = scene.previous
    if previous is not None and previous.type == "_COMMA" and scene.found == ")" and "TRUE" in scene.accepted:
        return scene.complain(Code.BAD_OPTION_FORM, "a tuple has two values or more")
    if "NAME" in scene.accepted and "NUMBER" not in scene.accepted and scene.found:
        message = f"options are written `name=value`, found {shown(scene.found)}"
        return scene.complain(Code.BAD_OPTION_FORM, message)
    if scene.accepted == {"_EQUAL"} and previous is not None:
        note = f"help: write `{scene.tokens[-3]} double`" if previous == "double" and len(scene.tokens) > 2 else None
        message = f"expected `=` and a value behind the option {shown(previous)}"
        start, end = previous.start_pos, previous.end_pos
        return Complaint(Code.BAD_OPTION_FORM, message, start, end, None, (note,) if note else ())
    return None


def _comparison(scene: Scene) -> Complaint | None:
    if re.match(r"[<>=!]", scene.found) is None:
        return None
    if "COMPARISON" in scene.accepted:
        meant = {"=": "==", "=>": ">=", "=<": "<=", "!": "!="}
        two = scene.source.text[scene.offset : scene.offset + 2]
        words = two if two in meant else scene.found
        message = f"`{words}` is no comparison"
        return scene.complain(Code.BAD_COMPARISON, message, meant.get(words), end=scene.offset + len(words))
    if any(token.type == "COMPARISON" for token in scene.tokens[-40:]) and "PLUS" in scene.accepted:
        note = "help: write one `require` for each comparison"
        return scene.complain(Code.BAD_COMPARISON, "`require` compares exactly once", None, note)
    return None


def _missing(scene: Scene) -> Complaint | None:
    """Something is missing at the end of a line or before `;`: the word before says where."""
    previous = scene.previous
    if previous is None or (not scene.at_end and scene.found != ";"):
        return None
    message = f"expected {scene.expected}{scene.behind}"
    return Complaint(Code.VALUE_EXPECTED, message, previous.start_pos, previous.end_pos)


def _clause(scene: Scene) -> Complaint | None:
    if "RANK" not in scene.accepted:
        return None
    found, previous = scene.found, scene.previous
    if found == "double":
        note = "help: write it there: `quant nf4 double`"
        return scene.complain(Code.MISPLACED_DOUBLE, "`double` stands directly behind its quantizer", None, note)
    if found in STATEMENTS:
        where = "a block holds only clauses" if scene.brace else "it begins on a line of its own, or behind `;`"
        return scene.complain(Code.UNKNOWN_CLAUSE, f"`{found}` begins a statement: {where}")
    notes: list[str] = []
    if previous is not None and previous.type == "TARGET":
        if previous in CLAUSES and len(scene.tokens) > 1 and scene.tokens[-2].type == "_COMMA":
            notes.append(f"help: the comma makes `{previous}` a target; leave the comma out")
        elif found[:1].isalnum() and nearest(found, CLAUSES) is None:
            notes.append(f"help: targets are parted by commas: `{previous},{found}`")
    if not (found[:1].isalpha() or found[:1] == "_"):
        return scene.complain(
            Code.UNEXPECTED, f"expected {scene.expected}{scene.behind}, found {shown(found)}", None, *notes
        )
    stuck = re.fullmatch(rf"({'|'.join(CLAUSES)})([0-9].*)", found)
    near = f"{stuck[1]} {stuck[2]}" if stuck else nearest(found, (*CLAUSES, "double"))
    return scene.complain(Code.UNKNOWN_CLAUSE, f"{shown(found)} is no clause", near, *notes)


def _other(scene: Scene) -> Complaint:
    notes = []
    if scene.found in ("=", ":") and scene.previous is not None and scene.previous in CLAUSES:
        notes.append(f"help: write `{scene.previous}` and its value without `{scene.found}`")
    needed = "_END" not in scene.accepted and scene.accepted.isdisjoint({"PLUS", "RPAR", "_COMMA"})
    found = shown(scene.found) if scene.found else "the end of the file"
    if scene.found == "(" and scene.previous is not None and scene.previous.type == "NAME":
        notes.append("an expression calls nothing: options belong to the names of plugins")
    return Complaint(
        Code.VALUE_EXPECTED if needed else Code.UNEXPECTED,
        f"expected {scene.expected}{scene.behind}, found {found}",
        scene.offset,
        max(scene.end, scene.offset + 1),
        None,
        tuple(notes),
    )


_RULES: tuple[Callable[[Scene], Complaint | None], ...] = (
    _character, _string, _target, _number, _statement, _comparison, _missing, _options, _clause, _other,
)  # fmt: skip
