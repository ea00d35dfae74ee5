"""What to say about words that cannot be read where they stand.

`complain` asks one small rule after the other; the first that knows what the writer probably meant answers, and the
last always does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from lorakit.diagnostics import Code, Diagnostic
from lorakit.language.foreign_words import QUANTIZERS, foreign_word
from lorakit.language.misspelled import wrong_character, wrong_number, wrong_string, wrong_target
from lorakit.language.scene import Scene, shown
from lorakit.language.source import SourceText
from lorakit.language.suggestions import listed, nearest
from lorakit.language.syntax import Word
from lorakit.language.words import CLAUSES, STATEMENTS

_CLOSING = {"_GROUP": ")", "_LPAR": ")", "_LSQB": "]", "LBRACE": "}"}
_COMPARISONS = {"=": "==", "=>": ">=", "=<": "<=", "!": "!="}


def complain(scene: Scene) -> Diagnostic:
    """Return what is wrong in this place."""
    answers = (rule(scene) for rule in _RULES)
    return next(answer for answer in answers if answer is not None)


def complain_overrun(source: SourceText, culprit: Word) -> Diagnostic:
    """Return the complaint about a bracket that is never closed, or a comma with nothing of its own behind it."""
    code, message = Code.NEVER_CLOSED, f"`{culprit}` is never closed"
    note = f"help: close it with `{_CLOSING.get(culprit.type)}`"
    if culprit.type == "_COMMA":
        code, message = Code.VALUE_EXPECTED, "expected something behind `,`, found a new statement"
        note = "behind a comma a list goes on in the next line"
    return source.diagnostic(code, message, culprit.start, culprit.end, None, (note,))


def _foreign(scene: Scene) -> Diagnostic | None:
    """A word of another tool in the place of a statement or a clause."""
    kinds = {"ADAPT": (Code.UNKNOWN_STATEMENT, "statement"), "RANK": (Code.UNKNOWN_CLAUSE, "clause")}
    code, kind = next((found for terminal, found in kinds.items() if terminal in scene.accepted), (None, ""))
    known = foreign_word(scene.source.text, scene.offset) if code is not None else None
    if code is None or known is None:
        return None
    word, help_ = known
    return scene.complain(code, f"{shown(word)} is no {kind}", None, help_, end=scene.offset + len(word))


def _statement(scene: Scene) -> Diagnostic | None:
    if "ADAPT" not in scene.accepted:
        return None
    found = scene.found
    if found in _BRACES:
        return scene.complain(Code.UNEXPECTED, _BRACES[found])
    if found in CLAUSES or found == "double":
        kind = "a clause" if found != "double" else "part of a clause"
        message = f"`{found}` is {kind}, and stands on the line of its statement or in its `{{ }}` block"
        return scene.complain(Code.UNKNOWN_STATEMENT, message)
    if not found[:1].isalnum():
        return scene.complain(Code.UNKNOWN_STATEMENT, f"expected a statement, found {shown(found)}")
    near = nearest(found, STATEMENTS)
    notes = () if near else (f"a statement begins with {listed(STATEMENTS).replace('`', '')}",)
    return scene.complain(Code.UNKNOWN_STATEMENT, f"{shown(found)} is no statement", near, *notes)


_BRACES = {"{": "`{` opens on the line of its statement", "}": "there is no block here that `}` could close"}


def _comparison(scene: Scene) -> Diagnostic | None:
    if scene.found[:1] not in tuple("<>=!"):
        return None
    if "COMPARISON" in scene.accepted:
        two = scene.source.text[scene.offset : scene.offset + 2]
        words = two if two in _COMPARISONS else scene.found
        end = scene.offset + len(words)
        return scene.complain(Code.BAD_COMPARISON, f"`{words}` is no comparison", _COMPARISONS.get(words), end=end)
    if any(token.type == "COMPARISON" for token in scene.tokens[-40:]) and "PLUS" in scene.accepted:
        note = "help: write one `require` for each comparison"
        return scene.complain(Code.BAD_COMPARISON, "`require` compares exactly once", None, note)
    return None


def _missing(scene: Scene) -> Diagnostic | None:
    """Something is missing at the end of a line or before `;`: the word before says where."""
    previous = scene.previous
    if previous is None or scene.found not in ("", ";"):
        return None
    notes = (_COMMA.format(previous),) if previous.type == "TARGET" and scene.behind_comma else ()
    return scene.complain(Code.VALUE_EXPECTED, scene.expected, None, *notes, at=previous.start, end=previous.end)


_COMMA = "help: the comma makes `{}` a target; leave the comma out"


def _quantizer(scene: Scene) -> Diagnostic | None:
    """Words around a quantizer of `quantize` that stand behind each other as in `adapt`, or the wrong way round."""
    tokens = [token for token in scene.tokens[-3:] if token != "double"]
    if len(tokens) < 2 or tokens[-2].type != "QUANTIZE" or tokens[-1].type != "TARGET":
        return None
    if scene.found == "quant":
        note = f"help: leave out `quant`: `quantize {tokens[-1]} nf4`"
        return scene.complain(Code.VALUE_EXPECTED, scene.expected + ", found `quant`", None, note)
    if tokens[-1] in QUANTIZERS:
        note = (
            f"help: the targets come first: `quantize @linear {' '.join(scene.tokens[-2:]).removeprefix('quantize ')}`"
        )
        return scene.complain(Code.VALUE_EXPECTED, f"{shown(tokens[-1])} is read as a target", None, note)
    return None


def _options(scene: Scene) -> Diagnostic | None:
    previous, found = scene.previous, scene.found
    if scene.keyword != "_LPAR" or previous is None:
        return None
    if previous.type == "_COMMA" and found == ")" and "TRUE" in scene.accepted:
        return scene.complain(Code.BAD_OPTION_FORM, "a tuple has two values or more")
    if "NAME" in scene.accepted and "NUMBER" not in scene.accepted and found:
        return scene.complain(Code.BAD_OPTION_FORM, f"options are written `name=value`, found {shown(found)}")
    if scene.accepted == {"_EQUAL"}:
        notes = (f"help: write `{scene.tokens[-3]} double`",) if previous == "double" and len(scene.tokens) > 2 else ()
        message = f"expected `=` and a value behind the option {shown(previous)}"
        return scene.complain(Code.BAD_OPTION_FORM, message, None, *notes, at=previous.start, end=previous.end)
    return None


def _clause(scene: Scene) -> Diagnostic | None:
    if "RANK" not in scene.accepted:
        return None
    found = scene.found
    if found == "double":
        note = "help: write it there: `quant nf4 double`"
        return scene.complain(Code.MISPLACED_DOUBLE, "`double` stands directly behind its quantizer", None, note)
    if found in STATEMENTS:
        where = "a block holds only clauses" if scene.brace else "it begins on a line of its own, or behind `;`"
        return scene.complain(Code.UNKNOWN_CLAUSE, f"`{found}` begins a statement: {where}")
    notes = _clause_notes(scene.previous, scene)
    if not (found[:1].isalpha() or found[:1] == "_"):
        return scene.complain(Code.UNEXPECTED, f"{scene.expected}, found {shown(found)}", None, *notes)
    stuck = re.fullmatch(rf"({'|'.join(CLAUSES)})([0-9].*)", found)
    near = f"{stuck[1]} {stuck[2]}" if stuck else nearest(found, (*CLAUSES, "double"))
    return scene.complain(Code.UNKNOWN_CLAUSE, f"{shown(found)} is no clause", near, *notes)


def _clause_notes(previous: Word | None, scene: Scene) -> Iterator[str]:
    """Yield what the writer may have meant with a word that is no clause."""
    found, kind = scene.found, previous.type if previous is not None else ""
    if kind == "TARGET" and previous in CLAUSES:
        at_front = f"help: `{previous}` is read as a target: the targets of a statement come first"
        yield _COMMA.format(previous) if scene.behind_comma else at_front
    elif previous is not None and kind == "TARGET" and (known := foreign_word(scene.source.text, previous.start)):
        yield known[1]
    elif kind == "TARGET" and found[:1].isalnum() and nearest(found, CLAUSES) is None:
        yield f"help: targets are parted by commas: `{previous},{found}`"
    if found == ",":
        yield "clauses are parted by blanks, and in a block also by newlines and `;`"
    if found == "(" and kind == "NAME":
        yield "an expression calls nothing: options belong to the names of plugins"


def _other(scene: Scene) -> Diagnostic:
    found, previous = scene.found, scene.previous
    is_sign = found in ("=", ":") and previous in CLAUSES
    notes = (f"help: write `{previous}` and its value without `{found}`",) if is_sign else ()
    if known := foreign_word(scene.source.text, scene.offset):
        notes = (known[1],)
    needed = scene.accepted.isdisjoint({"_END", "PLUS", "_RPAR", "_COMMA"})
    message = f"{scene.expected}, found {shown(found) if found else 'the end of the file'}"
    code, end = Code.VALUE_EXPECTED if needed else Code.UNEXPECTED, max(scene.end, scene.offset + 1)
    return scene.complain(code, message, None, *notes, end=end)


_RULES: tuple[Callable[[Scene], Diagnostic | None], ...] = (
    wrong_character, wrong_string, wrong_target, wrong_number,
    _foreign, _statement, _comparison, _missing, _quantizer, _options, _clause, _other,
)  # fmt: skip
