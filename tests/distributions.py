"""Installed distributions for tests: a module and its metadata in a folder that stands on the import path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from forked import shared

GOOD = '''
from dataclasses import dataclass
from typing import ClassVar
from lorakit.hooks import hookimpl
from lorakit.builtin.initializers import Gaussian

@dataclass(frozen=True)
class Start(Gaussian):
    """Gaussian under another name."""

    name: ClassVar[str] = "NAME"

@hookimpl
def lorakit_initializers():
    return [Start]
'''


def install(folder: Path, name: str, code: str, version: str = "1.0", modules: int = 1) -> None:
    """Put a distribution of one entry point for each of `modules` copies of this code into a folder."""
    package = name.replace("-", "_")
    points = [f"{package}_{number}" if number else package for number in range(modules)]
    for point in points:
        (folder / f"{point}.py").write_text(code, encoding="utf-8")
    info = folder / f"{package}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("[lorakit]\n" + "".join(f"{point} = {point}\n" for point in points))


def lorakit_with(folder: Path, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line where the distributions of a folder are installed."""
    path = os.pathsep.join((str(folder), *filter(None, sys.path)))
    return subprocess.run(
        [sys.executable, "-m", "lorakit", *map(str, words)],
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200", **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


# what a process finds that begins there; it has no plugins yet
FOUND = """
import sys
sys.path.insert(0, {folder!r})
from lorakit.plugins import default_plugins, vocabulary
default_plugins.cache_clear()
vocabulary.cache_clear()
"""


def forked_with(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a command that takes torch as `lorakit_with` does, but forked from a process that has imported it."""
    return shared().run(*words, before=FOUND.format(folder=str(folder)), cwd=folder, COLUMNS="200")


def own_tests(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Run the tests of a distribution that is installed in `site`, from a process that has imported torch."""
    words = ["-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    code = f"{FOUND.format(folder=str(site))}import pytest\nsys.exit(pytest.main({words!r}))\n"
    # the checks begin processes of their own
    return shared().run_code(code, folder, PYTHONPATH=os.pathsep.join((str(site), *filter(None, sys.path))))
