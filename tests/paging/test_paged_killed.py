"""A run that is killed while pages move goes on from its last checkpoint, to the same bits, and leaves no file."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import torch
from forked import Child, Nursery
from killed_run import ARENA, CHECKPOINT, STEPS
from paged_runs import flat, same
from torch import Tensor

KILLS = 20


def start(nursery: Nursery, folder: Path, at: int = 0) -> Child:
    here = str(Path(__file__).parent)
    return nursery.start(
        f"import sys\nsys.path.insert(0, {here!r})\nfrom pathlib import Path\nimport killed_run\n"
        f"print(killed_run.train(Path({str(folder)!r}), {at}))"
    )


def kept(folder: Path) -> dict[str, Any]:
    return flat(torch.load(folder / CHECKPOINT, weights_only=True))


def test_a_run_killed_while_pages_move_goes_on_to_the_same_bits(nursery: Nursery, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    child = start(nursery, whole)
    assert child.wait() == 0, child.err
    copies = int(child.out)
    # in and out, of most of ten pages in each step
    assert copies > 10 * STEPS
    draw, kills = random.Random(0), 0
    while kills < KILLS:
        child = start(nursery, killed, draw.randint(1, copies // 3))
        ended = child.wait()
        assert ended in (0, -signal.SIGKILL), child.err
        kills += ended < 0
        # the file of pages has no name, and all but a checkpoint and what was to become one is gone
        assert not list((killed / ARENA).iterdir())
        assert {one.name for one in killed.iterdir()} <= {ARENA, CHECKPOINT, "aside.pt"}
        if ended == 0:
            (killed / CHECKPOINT).unlink()
    child = start(nursery, killed)
    assert child.wait() == 0, child.err
    mine, theirs = kept(killed), kept(whole)
    assert mine.keys() == theirs.keys()
    for path, value in theirs.items():
        assert same([mine[path]], [value]) if isinstance(value, Tensor) else mine[path] == value, path
