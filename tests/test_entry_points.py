"""Entry points as lorakit reads them: those that importlib.metadata finds, in its order."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path

import pytest

from lorakit.caching import cache_folder
from lorakit.entry_points import entry_points


def found(group: str) -> list[tuple[str, str, str, str]]:
    return [(one.name, one.value, one.dist.name, one.dist.version) for one in entry_points(group)]


def reference(group: str) -> list[tuple[str, str, str, str]]:
    points = importlib.metadata.entry_points(group=group)
    return [(one.name, one.value, one.dist.name, one.dist.version) for one in points if one.dist is not None]


def install(folder: Path, info: str, name: str, version: str, points: str | None) -> None:
    (folder / info).mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nName: no header\n"
    (folder / info / ("PKG-INFO" if info.endswith("egg-info") else "METADATA")).write_text(metadata)
    if points is not None:
        (folder / info / "entry_points.txt").write_text(points)


@pytest.mark.parametrize("group", ["lorakit", "console_scripts", "pytest11", "nobody's"])
def test_what_is_installed_here(group: str) -> None:
    assert found(group) == reference(group)
    assert bool(found(group)) == (group != "nobody's")


def test_the_first_distribution_of_a_name_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    install(first, "mine_one-2.0.dist-info", "Mine.One", "2.0", None)
    install(second, "Mine.One-1.0.dist-info", "mine-one", "1.0", "[taken]\nold = os.path\n")
    text = "# what it offers\n[other]\na = x\n\n[taken]\nit = os.path : join [extra]\nthe = os\n[last]\nb = y\n"
    install(second, "other.egg-info", "other", "3", text)
    (second / "broken-1.dist-info" / "entry_points.txt").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(first), str(tmp_path / "nowhere"), __file__, str(second)])
    assert found("taken") == reference("taken")
    it, the = entry_points("taken")
    assert (it.dist.name, it.dist.version) == ("other", "3")
    assert it.load() is os.path.join and the.load() is os


def test_the_cache_is_where_the_user_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LORAKIT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for platform, place in (
        ("linux", ".cache/lorakit"), ("darwin", "Library/Caches/lorakit"), ("win32", "AppData/Local/lorakit/Cache"),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "platform", platform)
        assert cache_folder() == tmp_path / place
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "lorakit"
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "chosen"))
    assert cache_folder() == tmp_path / "chosen"
