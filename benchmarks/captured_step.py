"""One QLoRA training step as a CUDA graph, beside steps that run one operation after the other, and PEFT's.

    python benchmarks/captured_step.py [--layers 32] [--batch 1] [--tokens 512] [--only NAME,NAME] [--profile]

A Llama-3-8B-shaped model with random weights: NF4 with double quantization, rank 16 on all seven projections, adapters
in bfloat16, torch's fused AdamW on both sides, nothing recomputed. `compiled` is torch.compile of every decoder layer.
Prints the median time of a step with its update, tokens a second, the peak of memory, and the losses of the last steps;
with --profile the kernels that take longest, too, in ms a step, and how often they run.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from train_step import SPEC, ours, shape, theirs
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import lorakit

# by name: whose, whether compiled, whether captured
ROWS = {
    "lorakit": (ours, False, False),
    "lorakit captured": (ours, False, True),
    "lorakit compiled": (ours, True, False),
    "lorakit compiled and captured": (ours, True, True),
    "PEFT": (theirs, False, False),
    "PEFT compiled": (theirs, True, False),
}


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    make, compiled, captured = ROWS[name]
    torch._dynamo.reset()
    torch.manual_seed(1)
    model: Any = make(given.layers, False)
    if compiled:
        for module in model.modules():
            if isinstance(module, LlamaDecoderLayer):
                module.compile()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-4, fused=True)
    step = lorakit.Step(model, optimizer)
    if captured:
        step.capture()
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 128000, (given.batch, given.tokens), generator=generator) for _ in range(4)]
    losses, times, hosts = [], [], []
    torch.cuda.reset_peak_memory_stats()
    first = time.perf_counter()
    for number in range(given.steps + 4):
        if number == 4:
            first = time.perf_counter() - first
        ids = batches[number % 4]
        torch.cuda.synchronize()
        began = time.perf_counter()
        if make is ours:
            loss = step({"input_ids": ids, "labels": ids})
        else:
            loss = model(input_ids=ids.cuda(), labels=ids.cuda()).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss = loss.detach()
        hosts.append(time.perf_counter() - began)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
        losses.append(loss)
    median = statistics.median(times[4:])
    made = {
        "ms": round(1e3 * median, 1),
        "least ms": round(1e3 * min(times[4:]), 1),
        "host ms": round(1e3 * statistics.median(hosts[4:]), 1),
        "tokens/s": round(given.batch * given.tokens / median),
        "peak GiB": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "first 4 steps s": round(first, 1),
        "losses": [round(float(loss), 4) for loss in losses[-4:]],
    }
    if given.profile and make is ours:
        print_kernels(partial(step, {"input_ids": batches[0], "labels": batches[0]}))
    del model, optimizer, step, loss
    gc.collect()
    torch.cuda.empty_cache()
    return made


def print_kernels(step: Callable[[], object], most: int = 30) -> None:
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    took: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for event in seen.events() or ():
        took[event.name] += event.device_time
        count[event.name] += 1
    print(f"{took.total() / 1e3:.1f} ms of {count.total()} kernels and copies")
    for name, time_us in took.most_common(most):
        print(f"{time_us / 1e3:8.2f} {count[name]:6d} {name[:120]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 32), ("batch", 1), ("tokens", 512), ("steps", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", default=",".join(ROWS))
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    # one layer's code serves all of them
    torch._dynamo.config.cache_size_limit = 64
    print(torch.cuda.get_device_name(), torch.__version__, vars(given), SPEC)
    plan = lorakit.plan(SPEC, shape(given.layers), batch=given.batch, tokens=given.tokens)
    print("forecast GiB", round(plan.memory.peak / 2**30, 2))
    for name in given.only.split(","):
        print(name, json.dumps(measure(name, given)), flush=True)


if __name__ == "__main__":
    main()
