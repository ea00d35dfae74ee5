"""The short form of the fuzzer, and, where LORAKIT_FUZZ_SECONDS says so, the long one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("fuzz_parse.py")
SECONDS = int(os.environ.get("LORAKIT_FUZZ_SECONDS", "6"))


def test_fuzzing_finds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--seconds", str(SECONDS), "--found", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:] + "\n" + repr([path.read_bytes() for path in tmp_path.iterdir()])
