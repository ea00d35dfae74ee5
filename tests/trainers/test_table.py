"""The table of trainers: its script runs each cell, and none of them is `no`.

Every cell: `LORAKIT_EVERY_CELL=1 pytest tests/trainers/test_table.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from forked import shared

for name in ("peft", "trl", "datasets", "lightning"):
    pytest.importorskip(name)
SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "trainers.py"
TRAINERS = ("Trainer", "TRL SFT", "TRL DPO", "Accelerate", "Lightning", "a loop", "`lorakit train`")
CELLS = ("train", "checkpoint", "resume", "best model", "evaluate", "predict", "generate")
QUANTIZERS = ("none", "nf4 double", "hqq(bits=4)", "ao_int8")
LACKING = {"a loop": ("evaluate", "predict"), "`lorakit train`": ("best model", "predict")}
# one that keeps what it learned, and one that brings it back
FEW = ("checkpoint", "resume")
EVERY_CELL = bool(os.environ.get("LORAKIT_EVERY_CELL"))
CHOSEN = CELLS if EVERY_CELL else FEW
BASES = QUANTIZERS if EVERY_CELL else ("nf4 double",)
Results = dict[tuple[str, str, str], dict[str, str]]


def ran(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the script; it prints dashes, whatever the machine's language is."""
    environment = {**os.environ, "PYTHONUTF8": "1"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, encoding="utf-8", env=environment, check=False
    )


def forked(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the script in a process that has imported torch and transformers."""
    code = f"""
import runpy, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
sys.argv = [{str(SCRIPT)!r}, *{words!r}]
sys.stdout.reconfigure(encoding="utf-8")
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    return shared().run_code(code)


@pytest.fixture(scope="module")
def results() -> Results:
    if EVERY_CELL:
        pytest.importorskip("lorakit_hqq")
        pytest.importorskip("lorakit_torchao")
    done = forked("--format", "json", "--cells", *CHOSEN, "--quant", *BASES)
    assert done.stdout, done.stderr
    found = {(one["trainer"], one["quant"], one["cell"]): one for one in json.loads(done.stdout)}
    assert done.returncode == any(one["result"] == "no" for one in found.values())
    return found


def test_the_table_has_every_trainer(results: Results) -> None:
    assert results.keys() == {(trainer, quant, cell) for trainer in TRAINERS for quant in BASES for cell in CHOSEN}


@pytest.mark.parametrize("cell", CHOSEN)
@pytest.mark.parametrize("quant", BASES)
@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_cell_holds(trainer: str, quant: str, cell: str, results: Results) -> None:
    found = results[trainer, quant, cell]
    assert found["result"] == ("–" if cell in LACKING.get(trainer, ()) else "ok"), found["note"]


def test_a_cell_that_fails_says_why() -> None:
    done = ran("--trainers", "a loop", "--quant", "nf4(blocksize=63)", "--cells", "train", "predict")
    assert done.returncode == 1
    assert "no [1]" in done.stdout and "– [2]" in done.stdout
    assert "[1] SpecError: " in done.stdout and "blocksize" in done.stdout
