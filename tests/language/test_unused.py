"""Names that nothing uses: a warning, which leaves the program as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from language_helpers import plugins

from lorakit.language.analysis import analyse

RULE = "adapt q rank 4\n"


@pytest.mark.parametrize(
    ("text", "unused"),
    [
        (f"let r = 16\n{RULE}", ["r"]),
        (f"let a = 1; let b = a\n{RULE}", ["b"]),
        (f"let t = [q]; let u = [t, v]\n{RULE}", ["u"]),
        ("let r = 16\nadapt q rank r", []),
        ("let t = [q, v]\nadapt t rank 4", []),
        ("let t = [q]\nadapt x rank 4 except t", []),
        ("let share = 3%\nadapt q rank 4\nrequire trainable < share", []),
        (f"let _kept = 16\n{RULE}", []),
        ("let r = 16\nlet s = 2", []),
        (f"let r = 16\n{RULE}adapt v rnak r", []),
    ],
)
def test_what_nothing_uses_is_named(text: str, unused: list[str]) -> None:
    analysis = analyse(text, plugins=plugins())
    warnings = [one for one in analysis.diagnostics if one.severity == "warning"]
    assert [one.message for one in warnings] == [f"nothing uses `{name}`" for name in unused]
    assert [one.code for one in warnings] == ["L026"] * len(unused)
    assert (analysis.spec is None) == bool(analysis.errors) == ("rnak" in text)


def test_an_included_file_defines_for_others_too(tmp_path: Path) -> None:
    (tmp_path / "names.lora").write_text("let r = 4; let s = 5\n")
    (tmp_path / "main.lora").write_text(f'include "names.lora"\nlet t = 1\n{RULE}')
    (found,) = analyse(tmp_path / "main.lora", plugins=plugins()).diagnostics
    assert found.message == "nothing uses `t`"


def test_check_warns_and_exits_with_0(tmp_path: Path) -> None:
    (tmp_path / "spec.lora").write_text(f"let r = 16\n{RULE}")
    command = [sys.executable, "-m", "lorakit", "check", "spec.lora"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("warning[L026]: nothing uses `r`\n --> spec.lora:1:5\n")
    assert done.stdout.endswith("\n1 warning\nspec.lora: well-formed, 1 rule\n")


def test_what_is_sound_is_read_beside_what_is_not() -> None:
    analysis = analyse("adapt q rank 4\nadapt v rnak 4\nadapt k rank 0\nadapt o rank 2\n", plugins=plugins())
    assert analysis.spec is None
    assert [str(rule.targets[0]) for rule in analysis.sound.rules] == ["q", "o"]
