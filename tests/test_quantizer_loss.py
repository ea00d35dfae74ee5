"""QLoRA on real text ends where LoRA does: the benchmark says so, and fails where it does not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "quantizer_loss.py"


@pytest.mark.slow
def test_qlora_ends_within_two_percent_of_lora() -> None:
    # the gap closes with the steps: after 100 of 4 rows it was 2.2 % on a CPU, after these 0.9 % on an H100
    options = ["--targets", "q_proj,v_proj", "--steps", "300", "--batch", "8", "--held-out", "128", "--lr", "1e-3"]
    done = subprocess.run([sys.executable, SCRIPT, *options, "nf4 double"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^(none|nf4 double) .*?([\d.]+) +[\d.]+$", done.stdout, re.MULTILINE)
    assert [name for name, _ in rows] == ["none", "nf4 double"]
    assert abs(float(rows[1][1]) - 1) <= 0.02
