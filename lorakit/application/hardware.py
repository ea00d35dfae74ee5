"""What the hardware here is quick in: the accelerator's own word, or a measurement of a few milliseconds on the CPU."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from lorakit.dtypes import HALVES, dtype_of
from lorakit.planning.hardware import Hardware

# a product that takes tens of microseconds in float32: (rows, inputs, outputs)
SIZE = (16, 256, 512)
ROUNDS = 5
# on one core a dtype of 16 bits takes half of the time of float32 where the processor multiplies it, 1.4 times as much
# where it only converts, and 15 times as much in a loop over numbers
SLOW = 3.0


@functools.cache
def hardware() -> Hardware:
    """Return what models are computed on here: the accelerator if there is one, or else the CPU; found out once."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return Hardware("cpu", frozenset(name for name in HALVES if is_quick(dtype_of(name))), "this CPU")
    fast = {"float16"} | ({"bfloat16"} if _has_bf16(accelerator.type) else set())
    return Hardware(accelerator.type, frozenset(fast), _name(accelerator.type))


def is_quick(dtype: torch.dtype) -> bool:
    """Return whether the CPU multiplies matrices of a dtype about as quickly as those of float32.

    Both products of a training step count, forward and that with the gradient: without instructions for bfloat16 it is
    the second that takes far longer. The best of several rounds of either, taken in turns, so that what else the
    machine does counts for both.
    """
    plain, asked = _products(torch.float32), _products(dtype)
    with _one_thread():
        rounds = [(_seconds(plain), _seconds(asked)) for _ in range(ROUNDS + 1)]
    # the first round sets up what the others use
    plain_best, asked_best = (min(times) for times in zip(*rounds[1:], strict=True))
    return bool(asked_best <= SLOW * plain_best)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread for a while: on a busy machine several wait for each other, however short the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _products(dtype: torch.dtype) -> Callable[[], object]:
    rows, inputs, outputs = SIZE
    x, weight, gradient = (
        torch.ones(shape).to(dtype) for shape in ((rows, inputs), (outputs, inputs), (rows, outputs))
    )

    def run() -> object:
        with torch.no_grad():
            return torch.nn.functional.linear(x, weight), gradient @ weight

    return run


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _has_bf16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "xpu":
        return bool(torch.xpu.is_bf16_supported(including_emulation=False))
    if device == "mps":
        return bool(torch.backends.mps.is_macos_or_newer(14, 0))
    # of any other device only its maker's backend knows
    return True


def _name(device: str) -> str:
    module = torch.get_device_module(device)
    return str(module.get_device_name()) if hasattr(module, "get_device_name") else f"this {device.upper()}"
