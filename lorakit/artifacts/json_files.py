"""JSON files that should hold an object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lorakit.errors import LorakitError


def read_object(path: Path, what: str, error: type[LorakitError]) -> dict[str, Any]:
    """Return the object in a JSON file; `what` says what it should be. Raises: `error`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise error(f"{path} is no JSON: {problem}") from problem
    if not isinstance(found, dict):
        raise error(f"{path} is no {what}: it is a JSON {type(found).__name__}")
    return found
