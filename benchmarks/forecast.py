"""The forecast of a step's memory against the step: four architectures, three sizes, blocks kept and computed again.

    python benchmarks/forecast.py [--dtype bf16]

All forecasts are printed before the first step is done. On a GPU the peak is the allocator's, and models are larger;
on a CPU it is the bytes of all tensors that exist at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from live import Live

import lorakit
from lorakit.errors import PromiseError
from lorakit.planning.plan import Plan

SPEC = "adapt @linear rank 16 quant nf4 double"
# a config class, and its widths
FAMILIES = {
    "llama": ("LlamaConfig", {"intermediate": 3.5, "vocabulary": 32_000}),
    "qwen3": ("Qwen3Config", {"intermediate": 3.0, "vocabulary": 64_000}),
    "gemma3": ("Gemma3TextConfig", {"intermediate": 6.0, "vocabulary": 96_000}),
    "gpt2": ("GPT2Config", {"intermediate": 4.0, "vocabulary": 50_257}),
}
# hidden, layers, rows, tokens
SIZES = {
    "cpu": ((128, 4, 2, 256), (256, 6, 1, 512), (256, 4, 4, 384)),
    "cuda": ((1024, 12, 2, 1024), (2048, 16, 1, 2048), (2048, 12, 4, 2048)),
}


def config_of(family: str, hidden: int, layers: int) -> Any:
    """Return a config with these sizes, and heads of 64."""
    name, widths = FAMILIES[family]
    kind = getattr(transformers, name)
    heads, inner, vocabulary = hidden // 32, int(widths["intermediate"] * hidden), int(widths["vocabulary"])
    if family == "gpt2":
        return kind(
            n_embd=hidden, n_layer=layers, n_head=heads, n_inner=inner, vocab_size=vocabulary, n_positions=4096,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
    return kind(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads // 2,
        head_dim=32, intermediate_size=inner, vocab_size=vocabulary, max_position_embeddings=4096,
    )  # fmt: skip


def cases(dtype: torch.dtype, device: str) -> Iterator[tuple[str, nn.Module, Plan, tuple[int, int]]]:
    """Yield a name, a model, its plan, and the rows and tokens of a step; every size is tried keeping all, and half."""
    for family in FAMILIES:
        for hidden, layers, rows, tokens in SIZES[device]:
            for what in ("kept", "again"):
                torch.manual_seed(0)
                config = config_of(family, hidden, layers)
                model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
                spec = (
                    f"{SPEC}\nstep batch {rows} tokens {tokens} compute {'bf16' if dtype == torch.bfloat16 else 'fp32'}"
                )
                plan = lorakit.plan(spec, model)
                if what == "again":
                    # half-way between all of it and the least there is
                    middle = (plan.memory.peak + _least(spec, model)) // 2
                    plan = lorakit.plan(f"{spec} memory {middle}B", model)
                again = len(plan.memory.recomputed)
                yield f"{family} {hidden} × {layers}, {rows} × {tokens}, {again} again", model, plan, (rows, tokens)


def _least(spec: str, model: nn.Module) -> int:
    try:
        lorakit.plan(f"{spec} memory 1B", model)
    except PromiseError as error:
        return int(error.plan.memory.peak)
    raise AssertionError


def measured(model: nn.Module, plan: Plan, size: tuple[int, int], device: str) -> int:
    """Return the most bytes that the second step holds, with gradients of a step before, as where batches add up."""
    model = lorakit.apply(plan, model).to(device).train()
    optimizer = lorakit.optimizer(model)
    step = lorakit.Step(model, optimizer)
    ids = torch.randint(1000, size, device=device)
    batch = {"input_ids": ids, "labels": ids}
    step(batch)
    step.learn(batch)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step.learn(batch)
        step.update()
        return int(torch.cuda.max_memory_allocated())
    with Live(_held(model, optimizer)) as live:
        step.learn(batch)
        step.update()
    return live.most


def _held(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
    yield from (one.grad for one in model.parameters() if one.grad is not None)
    yield from (one for state in optimizer.state.values() for one in state.values() if isinstance(one, Tensor))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16" if torch.cuda.is_available() else "fp32")
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[parser.parse_args().dtype]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = list(cases(dtype, device))
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}, {dtype}")
    for name, _, plan, _ in found:
        print(f"forecast  {plan.memory.peak / 2**20:9.1f} MiB  {name}", flush=True)
    worst = 0.0
    while found:
        name, model, plan, size = found.pop(0)
        most = measured(model, plan, size, device)
        off = plan.memory.peak / most - 1
        worst = max(worst, abs(off), key=abs)
        print(f"measured  {most / 2**20:9.1f} MiB  {name}: the forecast is {off:+.1%}", flush=True)
        del model
        if device == "cuda":
            torch.cuda.empty_cache()
    print(f"the furthest off is {worst:.1%}")


if __name__ == "__main__":
    main()
