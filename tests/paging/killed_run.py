"""A run whose optimizer pages in each step, with checkpoints to go on from, and that may end while a page moves."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import lorakit
from lorakit.paging import Paged
from lorakit.paging.links import Copies, Direct
from lorakit.paging.sides import Arena, MappedFile

STEPS, EVERY = 12, 2
PAGE = 4096
CHECKPOINT, ARENA = "checkpoint.pt", "arena"


class Deadly(Direct):
    """Copies pages, and ends the process when half of a certain one is copied."""

    def __init__(self, folder: Path, at: int) -> None:
        super().__init__(Arena(), MappedFile(str(folder)))
        self.count = 0
        self._at = at

    def _copy(self, copies: Copies) -> None:
        for source, target in copies:
            self.count += 1
            if self.count == self._at:
                half = source.numel() // 2
                target[:half].copy_(source[:half])
                os.kill(os.getpid(), signal.SIGKILL)
            super()._copy([(source, target)])


def train(folder: Path, at: int) -> int:
    """Train from the checkpoint, if there is one, to the end or the copy of this number. Return how many there were."""
    (folder / ARENA).mkdir(exist_ok=True)
    torch.manual_seed(0)
    layers = [layer for _ in range(10) for layer in (nn.Linear(20, 20), nn.Tanh(), nn.Dropout(0.1))]
    model = nn.Sequential(*layers, nn.Linear(20, 4))
    link = Deadly(folder / ARENA, at)
    optimizer = Paged(torch.optim.AdamW(model.parameters(), lr=1e-2), 3 * PAGE, page_size=PAGE, link=lambda _: link)
    step = lorakit.Step(model, optimizer, functional.cross_entropy)
    done, losses = 0, []
    if (folder / CHECKPOINT).exists():
        kept: Any = torch.load(folder / CHECKPOINT, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        torch.set_rng_state(kept["generator"])
        done, losses = kept["done"], kept["losses"]
    while done < STEPS:
        draw = torch.Generator().manual_seed(done)
        losses.append(step((torch.randn(6, 20, generator=draw), torch.randint(4, (6,), generator=draw))))
        done += 1
        if done % EVERY == 0:
            if done % (2 * EVERY) == 0:
                optimizer.page_out()
                assert optimizer.near_bytes == 0
            aside = folder / "aside.pt"
            torch.save(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "generator": torch.get_rng_state(),
                 "done": done, "losses": losses},
                aside,
            )  # fmt: skip
            aside.replace(folder / CHECKPOINT)
    return link.count
