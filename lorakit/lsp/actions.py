"""Actions: putting the word that was probably meant in the place of a misspelled one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from lorakit.diagnostics import Code, Diagnostic
from lorakit.language.analysis import analyse
from lorakit.lsp.document import Document

_MEANT = re.compile(r"did you mean `(.+)`\?", re.DOTALL)

# Where only the end of the words at fault was meant otherwise, what parts it from the rest
_PARTED: Mapping[str, str] = {Code.MATCHES_NOTHING: ".", Code.UNREADABLE: "/"}


@dataclass(frozen=True)
class Fix:
    """New words for a piece of a document, and the diagnostic that they answer."""

    found: Diagnostic
    start: int
    end: int
    words: str


def fixes(found: Iterable[Diagnostic], document: Document, start: int, end: int) -> Iterator[Fix]:
    """Yield the suggestions between two offsets that leave fewer errors than there are."""
    for one in found:
        first = document.source.offset(one.line, one.column)
        last = document.source.offset(one.end_line, one.end_column)
        meant = _MEANT.fullmatch(one.suggestion or "")
        if meant is None or one.file != document.source.name or first > end or last < start:
            continue
        fix = Fix(one, first, last, _words(one.code, document.source.text[first:last], meant[1]))
        if _helps(fix, document):
            yield fix


def _words(code: str, old: str, meant: str) -> str:
    head, parting, _ = old.rpartition(_PARTED[code]) if code in _PARTED else ("", "", old)
    return f"{head}{parting}{meant.removeprefix(chr(34)) if parting else meant}"


def _helps(fix: Fix, document: Document) -> bool:
    text = document.source.text
    changed = (text[: fix.start] + fix.words + text[fix.end :]).encode("utf-8", "replace")
    after = analyse(changed, plugins=document.plugins, name=document.source.name, path=document.path)
    known = fix.found in document.analysis.diagnostics
    return len(after.diagnostics) < len(document.analysis.diagnostics) + (not known)
