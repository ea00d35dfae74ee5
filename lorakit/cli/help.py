"""What a command's `--help` says: its docstring, for a terminal of any width."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any


def help_of(command: Callable[..., Any]) -> str:
    """Return a docstring with the lines of each paragraph joined, and nothing in it that reads as markup."""
    text = inspect.getdoc(command) or ""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text).replace("[", r"\[")
