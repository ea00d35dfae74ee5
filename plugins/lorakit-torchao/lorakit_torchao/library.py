"""torchao itself, imported when a weight is quantized and no sooner."""

from __future__ import annotations

import functools
import importlib
from typing import Any

NEEDED = "0.18"


@functools.cache
def module(name: str) -> Any:
    """Return a module of torchao. Raises: ValueError if torchao is missing, too old or does not import."""
    from importlib.metadata import version

    from packaging.version import Version

    try:
        found = version("torchao")
        if Version(found) < Version(NEEDED):
            raise ImportError(f"version {found} is installed")
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"this needs torchao {NEEDED} or later (pip install 'torchao>={NEEDED}'): {error}") from error
