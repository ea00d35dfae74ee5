"""JSON files that should hold an object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lorakit.errors import LorakitError

# a config that names every module of the largest models is a hundredth of it
MAX_BYTES = 64 * 2**20
# about 90,000 modules
MAX_PLAN_BYTES = 128 * 2**20


def read_object(path: Path, what: str, error: type[LorakitError], most: int = MAX_BYTES) -> dict[str, Any]:
    """Return the object in a JSON file; `what` says what it should be. Raises: `error`."""
    try:
        found = json.loads(read_text(path, error, most))
    # numbers of thousands of digits are a ValueError, as is all that is no JSON
    except (ValueError, RecursionError) as problem:
        raise error(f"{path} is no JSON: {problem}") from problem
    if not isinstance(found, dict):
        raise error(f"{path} is no {what}: it is a JSON {type(found).__name__}")
    return found


def read_text(path: Path, error: type[LorakitError], most: int = MAX_BYTES) -> str:
    """Return the text of a file of at most so many bytes. Raises: `error`."""
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise error(f"{path} is too large: more than {most:,} bytes are not read")
        return data.decode("utf-8")
    except (OSError, ValueError) as problem:
        raise error(f"{path} cannot be read: {getattr(problem, 'strerror', None) or problem}") from problem
