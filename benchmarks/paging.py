"""A step of AdamW with its state in pages, beside the unpaged one and what others do with state on the CPU.

    python benchmarks/paging.py [--layers 32] [--rank 16] [--projections q,k,v,o,gate,up,down] [--shares 1,0.5,0.1,0]

Parameters are those of LoRA on projections of the Llama-3-8B shape, in float32. `share` is how much of the state may be
on the device; 0 is as little as a step can do with. The others are bitsandbytes' PagedAdamW (managed memory), torchao's
CPUOffloadOptimizer, and AdamW on the CPU with gradients sent out and parameters sent back, as torch's
CPUOffloadPolicy of FSDP has it; those that are not installed are left out. Where there is no GPU, pages move between an
arena and a memory-mapped file, and lorakit is beside the unpaged one alone. All are called in turn in one process.
Printed are medians of a step on an idle device, and of what it adds to products that the device is still busy with, as
in training with backward; the bytes of the device that state takes, the bytes that a step moves in (as many go out),
and the time that copies of as many bytes take both ways at once.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from lorakit.paging import Paged

# (out, in) of the projections of a layer
SHAPES = {
    "q": (4096, 4096),
    "k": (1024, 4096),
    "v": (1024, 4096),
    "o": (4096, 4096),
    "gate": (14336, 4096),
    "up": (14336, 4096),
    "down": (4096, 14336),
}
MIB = 1 << 20


def parameters(given: argparse.Namespace, device: str) -> list[nn.Parameter]:
    """Return A and B of every projection, with gradients."""
    made = [
        nn.Parameter(torch.randn(shape, device=device))
        for _ in range(given.layers)
        for out, into in (SHAPES[name] for name in given.projections.split(","))
        for shape in ((given.rank, into), (out, given.rank))
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


class Backward:
    """Products that keep a device busy for about as long as a backward pass of a small batch does."""

    def __init__(self, device: str) -> None:
        self._left = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) if device == "cuda" else None

    def __call__(self) -> None:
        if self._left is not None:
            for _ in range(40):
                torch.mm(self._left, self._left)


def copy_seconds(size: int, device: str) -> float:
    """Return how long so many bytes take into the device while as many go out of it."""
    if device != "cuda":
        return 0.0
    near = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
    far = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    out = torch.cuda.Stream()

    def copies() -> None:
        with torch.cuda.stream(out):
            far[0].copy_(near[0], non_blocking=True)
        near[1].copy_(far[1], non_blocking=True)

    return min(seconds(copies, device) for _ in range(3))


class OnTheCpu:
    """AdamW of copies on the CPU: gradients go out before its step, parameters come back after it."""

    def __init__(self, near: list[nn.Parameter]) -> None:
        self.near = near
        self.far = [nn.Parameter(one.detach().cpu().pin_memory()) for one in near]
        for one in self.far:
            one.grad = torch.empty_like(one, pin_memory=True)
        self.optimizer = torch.optim.AdamW(self.far, lr=1e-4, fused=True)

    @torch.no_grad()
    def step(self) -> None:
        for near, far in zip(self.near, self.far, strict=True):
            assert near.grad is not None and far.grad is not None
            far.grad.copy_(near.grad, non_blocking=True)
        torch.cuda.synchronize()
        self.optimizer.step()
        for near, far in zip(self.near, self.far, strict=True):
            near.copy_(far, non_blocking=True)


class TorchaosOffload:
    """torchao's optimizer, which sends gradients out as backward finds them: they are handed in anew each step."""

    def __init__(self, near: list[nn.Parameter]) -> None:
        from torchao.optim import CPUOffloadOptimizer

        self.near, self.gradients = near, [one.grad for one in near]
        self.optimizer = CPUOffloadOptimizer(near, torch.optim.AdamW, lr=1e-4)

    def step(self) -> None:
        for one in self.near:
            one.grad = None
        torch.autograd.backward(self.near, self.gradients)
        self.optimizer.step()


def optimizers(given: argparse.Namespace, device: str) -> dict[str, Any]:
    """Return the optimizers by name, each over parameters of its own."""

    def adamw() -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters(given, device), lr=1e-4, fused=True)

    whole = Paged(adamw())
    made: dict[str, Any] = {"AdamW": adamw(), "lorakit, without a budget": whole}
    for share in map(float, given.shares.split(",")):
        budget = max(int(share * whole.near_bytes), whole.least_budget)
        made[f"lorakit, {budget / whole.near_bytes:.0%} near"] = Paged(adamw(), budget)
    if device != "cuda":
        return made
    with suppress(ImportError):
        import bitsandbytes as bnb

        made["bitsandbytes PagedAdamW"] = bnb.optim.PagedAdamW(parameters(given, device), lr=1e-4)
    with suppress(ImportError):
        made["torchao CPUOffloadOptimizer"] = TorchaosOffload(parameters(given, device))
    made["AdamW on the CPU"] = OnTheCpu(parameters(given, device))
    return made


def state_bytes(optimizer: Any, device: str) -> int:
    """Return the bytes of state on the device."""
    if isinstance(optimizer, Paged):
        return optimizer.near_bytes
    if not isinstance(optimizer, torch.optim.Optimizer):
        return 0
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
    parser.add_argument("--projections", default=",".join(SHAPES))
    parser.add_argument("--shares", default="1,0.5,0.1,0")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    made = optimizers(given, device)
    for optimizer in made.values():
        for _ in range(3):
            optimizer.step()
    before = {name: one.traffic for name, one in made.items() if isinstance(one, Paged)}
    times: dict[str, list[float]] = {name: [] for name in made}
    added: dict[str, list[float]] = {name: [] for name in made}
    backward = Backward(device)
    for _ in range(given.rounds):
        for name, optimizer in made.items():
            times[name].append(seconds(optimizer.step, device))
            alone = seconds(backward, device)
            added[name].append(seconds(lambda step=optimizer.step: (backward(), step()), device) - alone)
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU, an arena and a memory-mapped file"
    print(f"{where}; {given.layers} layers, {given.projections}, rank {given.rank}; medians of {given.rounds}\n")
    print("| | ms a step | ms added to backward | MiB of state on the device | MiB in a step | ms of these copies |")
    print("|---|---|---|---|---|---|")
    for name, optimizer in made.items():
        moved, copying = 0, 0.0
        if isinstance(optimizer, Paged):
            moved = (optimizer.traffic.bytes_in - before[name].bytes_in) // (2 * given.rounds)
            copying = 1e3 * copy_seconds(moved, device) if moved else 0.0
        median, more = (1e3 * statistics.median(which[name]) for which in (times, added))
        held = state_bytes(optimizer, device) / MIB
        print(f"| {name} | {median:.2f} | {more:.2f} | {held:.1f} | {moved / MIB:.1f} | {copying:.2f} |")


if __name__ == "__main__":
    main()
