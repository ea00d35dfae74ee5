"""Defaults of options from a project's pyproject.toml."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from test_cli import lorakit_command

from lorakit.cli.main import command_named
from lorakit.cli.project import ASKED, defaults


def told(folder: Path, text: str, name: str = "train") -> dict[str, object]:
    (folder / "pyproject.toml").write_text(text)
    (folder / "below").mkdir(exist_ok=True)
    return defaults(command_named(name), name, folder / "below")


def test_the_nearest_file_gives_defaults_by_command(tmp_path: Path) -> None:
    text = "[project]\nname = 'x'\n[tool.lorakit.train]\nbatch = 8\nsave-every = 5\n[tool.lorakit.plan]\nbatch = 2\n"
    assert told(tmp_path, text) == {"batch": 8, "save_every": 5}
    assert told(tmp_path, text, "plan") == {"batch": 2} and told(tmp_path, text, "check") == {}
    assert told(tmp_path, "[tool.other]\n") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tool.lorakit.train\n", "is no TOML"),
        ("[tool.lorakit.train]\nbacth = 8\n", "gives `bacth`: `lorakit train` has no such option"),
        ("[tool.lorakit]\ntrain = 8\n", r"is no table: write \[tool.lorakit.train\]"),
        *[(f"[tool.lorakit.train]\n{name} = true\n", "for the command line alone") for name in sorted(ASKED)],
    ],
)
def test_what_is_wrong_there_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(click.UsageError, match=words):
        told(tmp_path, text)


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.lora").write_text("adapt q_proj rank 4\n")
    (tmp_path / "pyproject.toml").write_text("[tool.lorakit.check]\nformat = 'json'\n")
    assert lorakit_command("check", "a.lora", cwd=tmp_path).stdout.lstrip().startswith(("{", "["))
    assert "well-formed" in lorakit_command("check", "a.lora", "--format", "text", cwd=tmp_path).stdout
    (tmp_path / "pyproject.toml").write_text("[tool.lorakit.check]\nformat = 'yaml'\n")
    assert "'yaml' is not one of" in lorakit_command("check", "a.lora", cwd=tmp_path, code=2).stderr
