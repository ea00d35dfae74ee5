"""What to say about words that are spelled wrong: characters, strings, targets, ranges, numbers.

Each rule looks at a scene and answers with a complaint, or with None where it knows nothing about it.
"""

from __future__ import annotations

import re
import unicodedata

from lorakit.diagnostics import Code, Diagnostic
from lorakit.language.amounts import UNITS
from lorakit.language.scene import Scene, shown

_LOOSE_TARGET = re.compile(r"[^\s,;{}()\[\]#]*(?:\[[^\]\n]*\]?[^\s,;{}()\[\]#]*)*")
_LOOSE_NUMBER = re.compile(r"\.?[0-9](?:[eE][+-]|[\w.%])*")
_HALF_RANGE = re.compile(r"\.\.\s*(?:[\],]|$)|[\[,]\s*\.\.")

# Characters that word processors and web pages put in the place of plain ones
_PLAIN = {
    "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": '"', "’": '"', "–": "-", "—": "-", "−": "-", "×": "*",
    "÷": "/", "…": "..", "≤": "<=", "≥": ">=", "≠": "!=",
    "，": ",", "；": ";", "：": ":", "．": ".", "（": "(", "）": ")", "［": "[", "］": "]", "｛": "{", "｝": "}",
    "＝": "=", "＜": "<", "＞": ">", "＊": "*", "＋": "+", "／": "/", "＠": "@", "％": "%", "＃": "#",
}  # fmt: skip

_KINDS = {"@": "role", ":": "class"}


def wrong_character(scene: Scene) -> Diagnostic | None:
    """A character that is neither plain nor a letter."""
    character = scene.found[:1]
    if not character or (character.isascii() and character.isprintable()) or character.isalnum():
        return None
    name = unicodedata.name(character, "a control character")
    notes = ("help: write a plain blank",) if unicodedata.category(character) == "Zs" else ()
    message = f"the character U+{ord(character):04X} ({name}) has no place here"
    return scene.complain(Code.BAD_CHARACTER, message, _PLAIN.get(character), *notes, end=scene.offset + 1)


def wrong_string(scene: Scene) -> Diagnostic | None:
    """A string with a wrong escape, without an end, in single quotes, or in the place of a target."""
    found = scene.found
    if not found.startswith(('"', "'")):
        return None
    if "TARGET" in scene.accepted:
        return scene.complain(Code.BAD_TARGET, "targets are written without quotes", found.strip("\"'") or None)
    if "STRING" not in scene.accepted:
        return None
    if found[0] == "'":
        near = f'"{found[1:-1]}"' if len(found) > 1 else None
        return scene.complain(Code.BAD_STRING, "strings stand in double quotes", near)
    for escape in re.finditer(r"\\(.?)", found):
        if escape[1] not in ('"', "\\"):
            note = 'the escapes are `\\"` for a quote and `\\\\` for a backslash'
            at, end = (scene.offset + place for place in escape.span())
            message = f"a string knows no escape {shown(escape[0])}"
            return scene.complain(Code.BAD_STRING, message, None, note, at=at, end=end)
    return scene.complain(Code.BAD_STRING, "this string is never closed", None, "a string ends on its line")


def wrong_target(scene: Scene) -> Diagnostic | None:
    """A target of which only the beginning can be read, or none of it."""
    previous, text, offset, found = scene.previous, scene.source.text, scene.offset, scene.found
    end = _loose_end(text, offset, offset + 1)
    if previous is not None and previous.type == "TARGET":
        if previous.end == offset and found.startswith((".", "[", "@", ":", "/")):
            end = _loose_end(text, previous.start, offset + 1)
            if found[0] != "[":
                message = _bad_target(previous, text[offset:end])
                return scene.complain(Code.BAD_TARGET, message, at=previous.start, end=end)
            half = _HALF_RANGE.search(text, offset, end)
            message = "a range needs both of its ends" if half else f"cannot read the indices {shown(text[offset:end])}"
            note = "help: indices are written `[0..15]` or `[0,2,-1]`, both ends counted"
            return scene.complain(Code.BAD_RANGE, message, None, note, end=end)
        if found in (".", "["):
            return scene.complain(Code.BAD_TARGET, "a target is written without blanks outside of `[ ]`", end=end)
        if previous.end == offset and previous.endswith("]") and found[:1].isalnum():
            message = "the segments of a target are parted by dots"
            return scene.complain(Code.BAD_TARGET, message, f"{previous}.{found}", at=previous.start)
    if "TARGET" not in scene.accepted:
        return None
    if found == "/" and text.startswith("//", offset):
        return scene.complain(Code.BAD_TARGET, "this regex is empty", end=offset + 2)
    if found == "/":
        end = offset + len(text[offset:].partition("\n")[0])
        return scene.complain(Code.BAD_TARGET, "this regex is never closed with `/`", end=end)
    if found == "[" and "_LSQB" not in scene.accepted:
        note = "help: leave out the brackets: targets are parted by commas"
        return scene.complain(Code.BAD_TARGET, "a list in brackets stands only behind `let NAME =`", None, note)
    if found[:1] == ".":
        return scene.complain(Code.BAD_TARGET, "expected a segment before `.`", end=end)
    if found in _KINDS:
        return scene.complain(Code.BAD_TARGET, f"expected the name of a {_KINDS[found]} behind `{found}`", end=end)
    return None


def _loose_end(text: str, start: int, least: int) -> int:
    """Return where what looks like a target ends."""
    loose = _LOOSE_TARGET.match(text, start)
    return max(loose.end() if loose else 0, least)


def _bad_target(read: str, rest: str) -> str:
    """Return what is wrong with a target of which the rest cannot be read."""
    if rest[0] in _KINDS:
        return f"a {_KINDS[rest[0]]} is a segment of its own: `{read}.{rest}`"
    if rest[0] == "/":
        return "a regex stands alone and looks at the whole path"
    last = read.rpartition(".")[2]
    if last[0] in _KINDS:
        return f"a {_KINDS[last[0]]} can only be the last segment of a target"
    return "a target has no empty segment" if rest.startswith("..") else "expected a segment behind `.`"


def wrong_number(scene: Scene) -> Diagnostic | None:
    """A number or a range of which only the beginning can be read, or none of it."""
    previous, text, offset, found = scene.previous, scene.source.text, scene.offset, scene.found
    kind = previous.type if previous is not None else ""
    if previous is not None and (kind == "_DOTS" or (kind in _RANGES and found.startswith((".", "-", ":", "[")))):
        note = "help: ranges are written `0..15` or `0,2,-1`, both ends counted"
        at, end = (scene.offset, scene.end) if found else (previous.start, previous.end)
        return scene.complain(Code.BAD_RANGE, _RANGES[kind].format(shown(previous)), None, note, at=at, end=end)
    if previous is not None and kind == "NUMBER" and found in UNITS:
        message = "a unit stands without a blank behind its number"
        return scene.complain(Code.BAD_NUMBER, message, f"{previous}{found}", at=previous.start)
    start = offset
    if previous is not None and kind == "NUMBER" and previous.end == offset and found[:1] in (".", "%"):
        start = previous.start
    elif "NUMBER" not in scene.accepted:
        return None
    loose = _LOOSE_NUMBER.match(text, start)
    return _bad_number(scene, start, loose[0]) if loose else None


# What is said of a range, by what it breaks off behind
_RANGES = {
    "LAYERS": "expected a whole number behind {}",
    "INTEGER": "cannot read the range that begins with {}",
    "_DOTS": "a range needs both of its ends",
}


def _bad_number(scene: Scene, start: int, words: str) -> Diagnostic:
    notes = ["numbers are written `16`, `2e-4`, `0.05`, `1%` or `24GiB`"]
    digits = re.match(r"[0-9.]*", words)[0]  # type: ignore[index]
    unit = {name.lower(): name for name in UNITS}.get(words[len(digits) :].lower())
    near = None
    if digits and unit:
        near = f"{digits}{unit}"
        notes.append("units are case-sensitive")
    elif words.startswith("."):
        near = f"0{words}"
    elif words.endswith("."):
        near = f"{words}0"
    elif words.replace("_", "").isdigit():
        near = words.replace("_", "")
    message, end = f"{shown(words)} is not a number", start + len(words)
    return scene.complain(Code.BAD_NUMBER, message, near, *notes, at=start, end=end)
