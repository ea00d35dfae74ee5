"""Actions: what a suggestion says, done: a word put in the place of another, something added or taken out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lorakit.diagnostics import Code, Diagnostic
from lorakit.language.analysis import analyse
from lorakit.language.syntax import RuleNode
from lorakit.lsp.document import Document

# Where only the end of the words at fault was meant otherwise, what parts it from the rest
_PARTED: Mapping[str, str] = {Code.MATCHES_NOTHING: ".", Code.UNREADABLE: "/"}

# More fixes than these are not made in one go: each is tried out
MOST = 50


@dataclass(frozen=True)
class Fix:
    """New words for a piece of a document, the diagnostic that they answer, and what that comes to in words.

    It is `sure` where nothing is made up and nothing lost that was meant.
    """

    found: Diagnostic
    start: int
    end: int
    words: str
    title: str
    sure: bool = True


@dataclass(frozen=True)
class _Fault:
    """A diagnostic with the offsets of its words, and the match of its suggestion."""

    found: Diagnostic
    document: Document
    start: int
    end: int
    match: re.Match[str]

    @property
    def text(self) -> str:
        return self.document.source.text

    def fix(self, start: int, end: int, words: str, title: str, sure: bool = True) -> Fix:
        return Fix(self.found, start, end, words, title, sure)


def fixes(found: Iterable[Diagnostic], document: Document, start: int, end: int) -> Iterator[Fix]:
    """Yield the suggestions between two offsets that leave fewer complaints than there are."""
    for one in found:
        first = document.source.offset(one.line, one.column)
        last = document.source.offset(one.end_line, one.end_column)
        if one.file != document.source.name or first > end or last < start:
            continue
        for form, make in _FORMS:
            match = form.fullmatch(one.suggestion or "")
            fix = make(_Fault(one, document, first, last, match)) if match is not None else None
            if fix is not None and _helps(fix, document):
                yield fix
                break


def all_fixes(found: Iterable[Diagnostic], document: Document) -> list[Fix]:
    """Return the fixes of a whole document that are sure, none over another."""
    chosen: list[Fix] = []
    for fix in fixes(list(found)[:MOST], document, 0, len(document.source.text)):
        if fix.sure and all(fix.end <= one.start or fix.start >= one.end for one in chosen):
            chosen.append(fix)
    return chosen


def _meant(fault: _Fault) -> Fix:
    old, meant, code = fault.text[fault.start : fault.end], fault.match[1], fault.found.code
    head, parting, _ = old.rpartition(_PARTED[code]) if code in _PARTED else ("", "", old)
    words = f"{head}{parting}{meant.removeprefix(chr(34)) if parting else meant}"
    return fault.fix(fault.start, fault.end, words, f"Replace with `{words}`")


def _blank(fault: _Fault) -> Fix:
    return fault.fix(fault.start, fault.end, " ", "Replace with a plain blank")


def _close(fault: _Fault) -> Fix:
    line_end = re.compile(r"[^\n#]*").match(fault.text, fault.start)
    place = fault.start + len(line_end[0].rstrip()) if line_end is not None else fault.end
    return fault.fix(place, place, fault.match[1], f"Close it with `{fault.match[1]}`")


def _clause(fault: _Fault) -> Fix | None:
    for node in fault.document.tree.statements:
        if isinstance(node, RuleNode) and node.start == fault.start:
            place = node.targets[-1].end
            return fault.fix(place, place, f" {fault.match[1]}", f"Add `{fault.match[1]}`", False)
    return None


def _no_comma(fault: _Fault) -> Fix | None:
    place = fault.text.rfind(",", 0, fault.start)
    return fault.fix(place, place + 1, "", "Leave the comma out") if place >= 0 else None


def _comma(fault: _Fault) -> Fix:
    place = len(fault.text[: fault.start].rstrip())
    return fault.fix(place, fault.start, ",", "Put a comma between the targets")


def _no_brackets(fault: _Fault) -> Fix:
    end = fault.text.find("]", fault.start) + 1
    words = fault.text[fault.start : end].strip("[]")
    return fault.fix(fault.start, end, words, "Leave out the brackets")


def _no_sign(fault: _Fault) -> Fix:
    around = fault.text[fault.start - 1 : fault.start] + fault.text[fault.end : fault.end + 1]
    # it may be all that parts a clause from its value
    return fault.fix(fault.start, fault.end, "" if " " in around else " ", f"Leave out `{fault.match[2]}`")


def _behind(fault: _Fault) -> Fix | None:
    word = fault.match[1]
    alone = re.compile(r"\(\s*\w+(?:\s*=\s*true)?\s*\)")
    inside = alone.search(fault.text, fault.text.rfind("(", 0, fault.end), fault.end + 80)
    return fault.fix(*inside.span(), f" {word}", f"Put `{word}` behind its quantizer") if inside else None


def _back(fault: _Fault) -> Fix | None:
    call, word = fault.match[1], fault.match[2]
    place = fault.text.rfind(call, 0, fault.start) + len(call)
    if place < len(call) or "\n" in fault.text[place : fault.start]:
        return None
    between = fault.text[place : fault.start].rstrip()
    return fault.fix(place, fault.end, f" {word}{between}", f"Put `{word}` behind its quantizer")


def _instead(fault: _Fault) -> Fix:
    words = fault.match[1]
    first, _, value = words.partition(" ")
    # its value, or that it is so, may stand there already, and so may the word that it begins with
    given = re.compile(rf"\s*=?\s*(?:{re.escape(value)}|true)(?!\S)").match(fault.text, fault.end)
    begun = re.compile(rf"\b{re.escape(first)}\s+$").search(fault.text[: fault.start])
    start, end = begun.start() if begun else fault.start, given.end() if given else fault.end
    return fault.fix(start, end, words, f"Replace with `{words}`", given is not None)


def _without(fault: _Fault) -> Fix | None:
    words, end = fault.match[1], fault.end
    start = end - len(words)
    if fault.text[start:end] != words:
        return None
    before = len(fault.text[:start].rstrip(" \t"))
    return fault.fix(before, end, "", f"Leave out `{words}`")


def _ordered(fault: _Fault) -> Fix | None:
    for node in fault.document.tree.statements:
        if node.start <= fault.start < node.end:
            words = fault.text[node.start : node.end]
            same = sorted(words.split()) == sorted(fault.match[1].split())
            return fault.fix(node.start, node.end, fault.match[1], f"Write `{fault.match[1]}`") if same else None
    return None


def _line(fault: _Fault) -> Fix | None:
    for node in fault.document.tree.statements:
        if node.start <= fault.start < node.end:
            rest = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\n|;[ \t]*|$)").match(fault.text, node.end)
            end = rest.end() if rest is not None else node.end
            return fault.fix(node.start, end, "", f"Remove `{fault.text[node.start : node.end]}`", False)
    return None


# What suggestions look like, and what each comes to
_FORMS: tuple[tuple[re.Pattern[str], Callable[[_Fault], Fix | None]], ...] = tuple(
    (re.compile(form, re.DOTALL), make)
    for form, make in (
        (r"did you mean `(.+)`\?", _meant),
        (r"write `\w+ (double)`", _behind),
        (r"write `\w+ \w+ (double)`, .+ stands behind its quantizer", _behind),
        (r"write it there: `(.+) (double)`", _back),
        (r"write `(.+?)`, (?:a clause of|in) `.+", _instead),
        (r"write `(@\w+)`, .+", _meant),
        (r"write `compute (\w+)`", _meant),
        (r"(?:for a module of that name )?write `([^`]+)`", _meant),
        (r"write a plain blank", _blank),
        (r"close it with `(.)`", _close),
        (r"add a clause such as `([^`]+)`", _clause),
        (r"the comma makes `.+` a target; leave the comma out", _no_comma),
        (r"targets are parted by commas: `(.+)`", _comma),
        (r"leave out the brackets: .+", _no_brackets),
        (r"write `(\w+)` and its value without `(.)`", _no_sign),
        (r"`(\w+)` stands behind the parentheses, .+", _behind),
        (r"leave out `([^`]+)`(?:: .+)?", _without),
        (r"the targets come first: `(.+)`", _ordered),
        (r"remove the line, or .+", _line),
    )
)


def _helps(fix: Fix, document: Document) -> bool:
    text = document.source.text
    changed = (text[: fix.start] + fix.words + text[fix.end :]).encode("utf-8", "replace")
    after = analyse(changed, plugins=document.plugins, name=document.source.name, path=document.path)
    known = fix.found in document.analysis.diagnostics
    before = document.analysis.diagnostics if known else (*document.analysis.diagnostics, fix.found)
    return _weight(after.diagnostics) < _weight(before)


def _weight(found: Sequence[Diagnostic]) -> tuple[int, int]:
    """Return how much there is to complain of: what is not used shows only where nothing is at fault."""
    return sum(one.severity == "error" for one in found), len(found)
