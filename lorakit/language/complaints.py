"""What to say about words that cannot be read where they stand.

`complain` asks one small rule after the other; the first that knows what the writer probably meant answers, and the
last always does.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from lorakit.diagnostics import Code
from lorakit.language.expectations import expected_name
from lorakit.language.misspelled import wrong_character, wrong_number, wrong_string, wrong_target
from lorakit.language.scene import Complaint, Scene, shown
from lorakit.language.suggestions import listed, nearest
from lorakit.language.syntax import Word
from lorakit.language.words import CLAUSES, STATEMENTS

_CLOSING = {"_GROUP": ")", "_LPAR": ")", "_LSQB": "]", "LBRACE": "}"}


def complain(scene: Scene) -> Complaint:
    """Return what is wrong in this place."""
    answers = (rule(scene) for rule in _RULES)
    return next(answer for answer in answers if answer is not None)


def complain_overrun(culprit: Word) -> Complaint:
    """Return the complaint about a bracket that is never closed, or a comma with nothing of its own behind it."""
    start, end = culprit.start, culprit.end
    if culprit.type == "_COMMA":
        return Complaint(
            Code.VALUE_EXPECTED, "expected something behind `,`, found a new statement", start, end, None,
            ("behind a comma a list goes on in the next line",),
        )  # fmt: skip
    message = f"`{culprit}` is never closed"
    return Complaint(Code.NEVER_CLOSED, message, start, end, None, (f"help: close it with `{_CLOSING[culprit.type]}`",))


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
    note = f"a statement begins with {listed(STATEMENTS).replace('`', '')}"
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
        start, end = previous.start, previous.end
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
    notes: tuple[str, ...] = ()
    if previous.type == "TARGET" and len(scene.tokens) > 1 and scene.tokens[-2].type == "_COMMA":
        notes = (f"help: the comma makes `{previous}` a target; leave the comma out",)
    return Complaint(Code.VALUE_EXPECTED, message, previous.start, previous.end, None, notes)


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
        elif previous in CLAUSES:
            notes.append(f"help: `{previous}` is read as a target: the targets of a statement come first")
        elif found[:1].isalnum() and nearest(found, CLAUSES) is None:
            notes.append(f"help: targets are parted by commas: `{previous},{found}`")
    if found == ",":
        notes.append("clauses are parted by blanks, and in a block also by newlines and `;`")
    if found == "(" and previous is not None and previous.type == "NAME":
        notes.append("an expression calls nothing: options belong to the names of plugins")
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
    needed = "_END" not in scene.accepted and scene.accepted.isdisjoint({"PLUS", "_RPAR", "_COMMA"})
    found = shown(scene.found) if scene.found else "the end of the file"
    return Complaint(
        Code.VALUE_EXPECTED if needed else Code.UNEXPECTED,
        f"expected {scene.expected}{scene.behind}, found {found}",
        scene.offset,
        max(scene.end, scene.offset + 1),
        None,
        tuple(notes),
    )


_RULES: tuple[Callable[[Scene], Complaint | None], ...] = (
    wrong_character,
    wrong_string,
    wrong_target,
    wrong_number,
    _statement,
    _comparison,
    _missing,
    _options,
    _clause,
    _other,
)
