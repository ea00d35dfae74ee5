"""Two processes on the CPU for checks that each of them runs, with gloo between them."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forked import spawn

WORLD = 2
Check = Callable[[Path], None]


def run(checks: Mapping[str, Check], folder: Path) -> dict[str, str]:
    """Return what each check said as it failed in any process, nothing if it did not; `folder` is what it is given."""
    spawn(_worker, (dict(checks), str(folder)), WORLD)
    failures: dict[str, str] = json.loads((folder / "failures.json").read_text())
    return failures


def expect_none(failure: str) -> None:
    if failure:
        pytest.fail(failure, pytrace=False)


def _worker(rank: int, checks: Mapping[str, Check], folder: str) -> None:
    torch.set_num_threads(1)
    # as torchrun has it
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "localhost", "MASTER_PORT": "0", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    failures = {}
    for name, check in checks.items():
        failure = ""
        try:
            check(Path(folder))
        except Exception:
            failure = f"in process {rank}: {traceback.format_exc()}"
        # a process that failed alone would leave the other waiting in the next check
        told = [""] * WORLD
        dist.all_gather_object(told, failure)
        failures[name] = "\n".join(filter(None, told))
    if rank == 0:
        (Path(folder) / "failures.json").write_text(json.dumps(failures))
    dist.destroy_process_group()
