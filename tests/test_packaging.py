"""The wheel: built, installed into an empty environment with the light dependencies alone, and used."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
# what reading a spec takes; torch and transformers are not among it
LIGHT = ["click", "packaging", "pluggy", "rich"]


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "project",
    [ROOT / "pyproject.toml", *sorted(ROOT.glob("plugins/*/pyproject.toml"))],
    ids=lambda path: path.parent.name,
)
def test_what_is_required_has_lower_bounds_alone(project: Path) -> None:
    # an installed torch stays as it is
    required = tomllib.loads(project.read_text("utf-8"))["project"]
    lines = [*required["dependencies"], *chain(*required.get("optional-dependencies", {}).values())]
    bounds = {line: {one.operator for one in Requirement(line).specifier} for line in lines}
    assert not [line for line, operators in bounds.items() if operators != {">="}]


def test_the_wheel_works_without_torch(tmp_path: Path) -> None:
    # a copy, since setuptools leaves a build folder behind
    source = tmp_path / "source"
    for name in ("lorakit", "grammar"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path / "wheel", source, cwd=tmp_path)
    wheel = next((tmp_path / "wheel").iterdir())
    names = zipfile.ZipFile(wheel).namelist()
    assert "lorakit/grammar/lorakit.lark" in names and "lorakit/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "plugins/", "benchmarks/"))]
    missing = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "lorakit").rglob("*.py")
        if path.relative_to(ROOT).as_posix() not in names
    ]
    assert missing == []
    assert "lorakit/language/pages/L042.md" in names
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv, cwd=tmp_path)
    constraints = ROOT / ".ci" / "constraints.txt"
    run(venv / "bin" / "pip", "install", "-q", "-c", constraints, *LIGHT, cwd=tmp_path)
    run(venv / "bin" / "pip", "install", "-q", "--no-deps", wheel, cwd=tmp_path)
    spec = tmp_path / "one.lora"
    spec.write_text("adapt q_proj,v_proj rank 16 quant nf4 double paged\n")
    assert "well-formed" in run(venv / "bin" / "lorakit", "check", spec, cwd=tmp_path)
    assert run(venv / "bin" / "lorakit", "fmt", "--check", spec, cwd=tmp_path) is not None
    assert "# L042" in run(venv / "bin" / "lorakit", "explain", "L042", cwd=tmp_path)
    probe = "import lorakit; print(len(lorakit.parse('adapt q rank 2').rules))"
    assert run(venv / "bin" / "python", "-c", probe, cwd=tmp_path).strip() == "1"
    assert not (venv / "lib" / f"python3.{sys.version_info.minor}" / "site-packages" / "torch").exists()
