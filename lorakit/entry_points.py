"""The entry points of installed distributions, read where installers write them: in the folders of `sys.path`.

importlib.metadata reads the same files, and archives; importing it takes longer than all of this.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

INFO = (".dist-info", ".egg-info")


class Distribution(NamedTuple):
    """An installed distribution."""

    name: str
    version: str


class EntryPoint(NamedTuple):
    """A name that a distribution offers, and the module, or the object in a module, that stands behind it."""

    name: str
    value: str
    dist: Distribution

    def load(self) -> Any:
        """Import what stands behind the name."""
        module, _, attributes = self.value.partition("[")[0].partition(":")
        found: Any = import_module(module.strip())
        for attribute in filter(None, attributes.strip().split(".")):
            found = getattr(found, attribute)
        return found


def entry_points(group: str) -> Iterator[EntryPoint]:
    """Yield what the installed distributions offer in a group; of two of one name the first on `sys.path` counts."""
    for folder in _distributions():
        points = _text(folder / "entry_points.txt")
        if f"[{group}]" in points:
            distribution = _distribution(folder)
            for name, value in _section(points, group):
                yield EntryPoint(name, value, distribution)


def _distributions() -> Iterator[Path]:
    """Yield the folder that says what it is of every installed distribution."""
    seen = set()
    for path in sys.path:
        with contextlib.suppress(OSError):
            for file in os.listdir(path or "."):  # noqa: PTH208
                if file.lower().endswith(INFO):
                    name = re.sub(r"[-_.]+", "-", file.rpartition(".")[0].partition("-")[0]).lower()
                    if name not in seen:
                        seen.add(name)
                        yield Path(path, file)


def _distribution(folder: Path) -> Distribution:
    """Return the distribution that a folder describes, by the head of its metadata."""
    head = (_text(folder / "METADATA") or _text(folder / "PKG-INFO")).partition("\n\n")[0]
    fields = dict(line.split(": ", 1) for line in reversed(head.splitlines()) if ": " in line)
    return Distribution(fields.get("Name", folder.name), fields.get("Version", ""))


def _section(text: str, section: str) -> Iterator[tuple[str, str]]:
    """Yield the names and values in a section of an entry_points.txt."""
    current = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            current = line[1:-1]
        elif current == section and line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            yield name.strip(), value.strip()


def _text(file: Path) -> str:
    """Return what a file says, or nothing where it cannot be read."""
    try:
        return file.read_text("utf-8")
    except (OSError, ValueError):
        return ""
