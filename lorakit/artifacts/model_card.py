"""README.md in an adapter folder: one that lorakit wrote is written anew, one that a person touched stays."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

CARD = "README.md"
_MARK = re.compile(r"<!-- lorakit wrote this, and does again unless it is edited \(([0-9a-f]{64})\) -->\n")


def marked(head: str, body: str) -> str:
    """Return a card with a mark between head and body that tells an edit."""
    return f"{head}<!-- lorakit wrote this, and does again unless it is edited ({_digest(head + body)}) -->\n{body}"


def keep_card(standing: Path, made: Path) -> None:
    """Take a card over from the adapter folder that stands at a place into the one to replace it, if it is a person's.

    Raises: OSError.
    """
    card = standing / CARD
    if card.is_file() and not _is_ours(card):
        shutil.copyfile(card, made / CARD)


def _is_ours(card: Path) -> bool:
    text = card.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")
    found = _MARK.search(text)
    return found is not None and _digest(text[: found.start()] + text[found.end() :]) == found[1]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
