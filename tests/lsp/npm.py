"""Packages of npm for tests, kept in the user's cache."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from lorakit.caching import cache_folder


def installed(name: str, *packages: str, inside: str = "") -> Path:
    """Return a folder in which packages are installed, `inside` of it; skip the test where npm cannot do so."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    mark = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:8]
    top = cache_folder() / f"{name}-{mark}"
    folder, done = top / inside, top / "installed"
    if done.is_file():
        return top
    folder.mkdir(parents=True, exist_ok=True)
    install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *packages]
    try:
        made = subprocess.run(install, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not install {', '.join(packages)} in two minutes")
    if made.returncode != 0:
        pytest.skip(f"npm cannot install {', '.join(packages)}: {made.stderr.strip()[-200:]}")
    done.touch()
    return top
