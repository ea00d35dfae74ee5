"""A step of AdamW with its state in pages, beside the unpaged one and bitsandbytes' paged one.

    python benchmarks/paging.py [--layers 32] [--rank 16] [--shares 1,0.5,0.1] [--rounds 20]

Parameters are those of LoRA on all seven projections of the Llama-3-8B shape, in float32. `share` is how much of the
state may be on the device. Where there is no GPU, pages move between an arena and a memory-mapped file, and
bitsandbytes is left out. All are called in turn in one process; medians are printed, with the bytes of the device that
state takes, the bytes that a step moves both ways, and the time that those copies take by themselves.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from lorakit.paging import Paged

# (out, in) of the projections of a layer
SHAPES = ((4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (14336, 4096), (14336, 4096), (4096, 14336))
MIB = 1 << 20


def parameters(layers: int, rank: int, device: str) -> list[nn.Parameter]:
    """Return A and B of every projection, with gradients."""
    made = [
        nn.Parameter(torch.randn(shape, device=device))
        for _ in range(layers)
        for out, into in SHAPES
        for shape in ((rank, into), (out, rank))
    ]
    for parameter in made:
        parameter.grad = torch.randn_like(parameter)
    return made


def seconds(call: Callable[[], object], device: str) -> float:
    """Return how long a call takes, with what it starts on the device."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def copy_seconds(size: int, device: str) -> float:
    """Return how long so many bytes take on their way out of the device."""
    if device != "cuda":
        return 0.0
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    return min(seconds(lambda: target.copy_(source, non_blocking=True), device) for _ in range(3))


def optimizers(given: argparse.Namespace, device: str) -> dict[str, torch.optim.Optimizer]:
    """Return the optimizers by name, each over parameters of its own."""

    def adamw() -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters(given.layers, given.rank, device), lr=1e-4, fused=True)

    whole = Paged(adamw())
    made: dict[str, torch.optim.Optimizer] = {"AdamW": adamw(), "lorakit, without a budget": whole}
    for share in map(float, given.shares.split(",")):
        made[f"lorakit, {share:.0%} near"] = Paged(adamw(), max(int(share * whole.near_bytes), whole.least_budget))
    if device == "cuda":
        import bitsandbytes as bnb

        made["bitsandbytes PagedAdamW"] = bnb.optim.PagedAdamW(parameters(given.layers, given.rank, device), lr=1e-4)
    return made


def state_bytes(optimizer: torch.optim.Optimizer, device: str) -> int:
    """Return the bytes of state on the device."""
    if isinstance(optimizer, Paged):
        return optimizer.near_bytes
    values = (value for kept in optimizer.state.values() for value in kept.values())
    return sum(
        value.nbytes
        for value in values
        if isinstance(value, torch.Tensor) and value.device.type == device and not getattr(value, "is_paged", False)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--shares", default="1,0.5,0.1")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    made = optimizers(given, device)
    for optimizer in made.values():
        for _ in range(3):
            optimizer.step()
    before = {name: one.traffic for name, one in made.items() if isinstance(one, Paged)}
    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(given.rounds):
        for name, optimizer in made.items():
            times[name].append(seconds(optimizer.step, device))
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU, an arena and a memory-mapped file"
    print(f"{where}; {given.layers} layers, rank {given.rank}; medians of {given.rounds}\n")
    print("| | ms a step | MiB of state on the device | MiB in and out a step | ms of these copies |")
    print("|---|---|---|---|---|")
    for name, optimizer in made.items():
        moved, copying = 0, 0.0
        if isinstance(optimizer, Paged):
            moved = (optimizer.traffic.bytes_in - before[name].bytes_in) // given.rounds
            copying = 1e3 * copy_seconds(moved, device) if moved else 0.0
        median = 1e3 * statistics.median(times[name])
        held = state_bytes(optimizer, device) / MIB
        print(f"| {name} | {median:.2f} | {held:.1f} | {moved / MIB:.1f} | {copying:.2f} |")


if __name__ == "__main__":
    main()
