"""What to say about words that are spelled wrong: characters, strings, targets, ranges, numbers.

Each rule looks at a scene and answers with a complaint, or with None where it knows nothing about it.
"""

from __future__ import annotations

import re
import unicodedata

from lorakit.diagnostics import Code
from lorakit.language.amounts import UNITS
from lorakit.language.scene import Complaint, Scene, shown
from lorakit.language.syntax import Word

_LOOSE_TARGET = re.compile(r"[^\s,;{}()\[\]#]*(?:\[[^\]\n]*\]?[^\s,;{}()\[\]#]*)*")
_LOOSE_NUMBER = re.compile(r"\.?[0-9](?:[eE][+-]|[\w.%])*")

# Characters that word processors and web pages put in the place of plain ones
_PLAIN = {
    "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": '"', "’": '"', "–": "-", "—": "-", "−": "-", "×": "*",
    "÷": "/", "…": "..", "≤": "<=", "≥": ">=", "≠": "!=",
    "，": ",", "；": ";", "：": ":", "．": ".", "（": "(", "）": ")", "［": "[", "］": "]", "｛": "{", "｝": "}",
    "＝": "=", "＜": "<", "＞": ">", "＊": "*", "＋": "+", "／": "/", "＠": "@", "％": "%", "＃": "#",
}  # fmt: skip


def wrong_character(scene: Scene) -> Complaint | None:
    """A character that is neither plain nor a letter."""
    character = scene.found[:1]
    if not character or (character.isascii() and character.isprintable()) or character.isalnum():
        return None
    name = unicodedata.name(character, "a control character")
    notes = ("help: write a plain blank",) if unicodedata.category(character) == "Zs" else ()
    message = f"the character U+{ord(character):04X} ({name}) has no place here"
    return scene.complain(Code.BAD_CHARACTER, message, _PLAIN.get(character), *notes, end=scene.offset + 1)


def wrong_string(scene: Scene) -> Complaint | None:
    """A string with a wrong escape, without an end, in single quotes, or in the place of a target."""
    if not scene.found.startswith(('"', "'")):
        return None
    if "TARGET" in scene.accepted:
        inner = scene.found.strip("\"'")
        return scene.complain(Code.BAD_TARGET, "targets are written without quotes", inner or None)
    if scene.found[0] == "'" and "STRING" in scene.accepted:
        near = f'"{scene.found[1:-1]}"' if len(scene.found) > 1 else None
        return scene.complain(Code.BAD_STRING, "strings stand in double quotes", near)
    if "STRING" not in scene.accepted or scene.found[0] == "'":
        return None
    for escape in re.finditer(r"\\(.?)", scene.found[1:]):
        if escape[1] not in ('"', "\\"):
            start = scene.offset + 1 + escape.start()
            message = f"a string knows no escape {shown(escape[0])}"
            return Complaint(
                Code.BAD_STRING, message, start, start + len(escape[0]), None,
                ('the escapes are `\\"` for a quote and `\\\\` for a backslash',),
            )  # fmt: skip
    return scene.complain(Code.BAD_STRING, "this string is never closed", None, "a string ends on its line")


def wrong_target(scene: Scene) -> Complaint | None:
    """A target of which only the beginning can be read, or none of it."""
    previous, text, offset = scene.previous, scene.source.text, scene.offset
    adjacent = previous is not None and previous.type == "TARGET" and previous.end == offset
    if previous is not None and adjacent and scene.found.startswith((".", "[", "@", ":", "/")):
        loose = _LOOSE_TARGET.match(text, previous.start)
        end = max(loose.end() if loose else 0, offset + 1)
        if scene.found.startswith("["):
            return _range_complaint(scene, offset, end)
        return Complaint(Code.BAD_TARGET, *_bad_target(previous, text[offset:end]), previous.start, end)
    if previous is not None and previous.type == "TARGET" and scene.found in (".", "["):
        loose = _LOOSE_TARGET.match(text, offset)
        message = "a target is written without blanks outside of `[ ]`"
        return scene.complain(Code.BAD_TARGET, message, end=max(loose.end() if loose else 0, offset + 1))
    if previous is not None and adjacent and previous.endswith("]") and scene.found[0:1].isalnum():
        message = "the segments of a target are parted by dots"
        return Complaint(Code.BAD_TARGET, message, previous.start, scene.end, f"{previous}.{scene.found}")
    if "TARGET" not in scene.accepted or not scene.found:
        return None
    if scene.found[0] == "/":
        if text.startswith("//", offset):
            return scene.complain(Code.BAD_TARGET, "this regex is empty", end=offset + 2)
        end = text.find("\n", offset)
        end = len(text) if end < 0 else end
        return scene.complain(Code.BAD_TARGET, "this regex is never closed with `/`", end=end)
    if scene.found[0] == "[" and "_LSQB" not in scene.accepted:
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


def wrong_number(scene: Scene) -> Complaint | None:
    """A number or a range of which only the beginning can be read, or none of it."""
    previous, text, offset = scene.previous, scene.source.text, scene.offset
    in_range = previous is not None and previous.type in ("LAYERS", "INTEGER", "_DOTS")
    if previous is not None and in_range and (previous.type == "_DOTS" or scene.found.startswith((".", "-", ":", "["))):
        note = "help: ranges are written `0..15` or `0,2,-1`, both ends counted"
        message = f"expected a whole number behind {shown(previous)}"
        if previous.type == "_DOTS":
            return Complaint(Code.BAD_RANGE, "a range needs both of its ends", *_ends(previous, scene), None, (note,))
        if previous.type == "INTEGER":
            message = f"cannot read the range that begins with {shown(previous)}"
        return scene.complain(Code.BAD_RANGE, message, None, note)
    if previous is not None and previous.type == "NUMBER":
        if scene.found in UNITS and scene.found:
            message = "a unit stands without a blank behind its number"
            return Complaint(Code.BAD_NUMBER, message, previous.start, scene.end, f"{previous}{scene.found}")
        if previous.end == offset and scene.found.startswith((".", "%")):
            loose = _LOOSE_NUMBER.match(text, previous.start)
            return _bad_number(previous.start, loose[0] if loose else previous + scene.found)
    loose = _LOOSE_NUMBER.match(text, offset)
    if loose is None or "NUMBER" not in scene.accepted:
        return None
    return _bad_number(offset, loose[0])


def _ends(previous: Word, scene: Scene) -> tuple[int, int]:
    """Return the offsets of the words found or, at the end of a line, of those before."""
    return (previous.start, previous.end) if scene.at_end else (scene.offset, scene.end)


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
