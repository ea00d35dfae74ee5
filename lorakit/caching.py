"""Where lorakit keeps what it can make or fetch again."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Return LORAKIT_CACHE, or lorakit's folder in the user's cache, wherever the system has that."""
    if chosen := os.environ.get("LORAKIT_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "lorakit" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "lorakit"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorakit"
