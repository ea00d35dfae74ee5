"""One QLoRA step with compiled blocks, beside compiled PEFT and Unsloth, each row a process of its own.

    python benchmarks/compiled_step.py [--layers 32] [--batch 2] [--tokens 2048] [--rows "NAME;NAME"] [--profile]

A Llama-3-8B-shaped model with random weights: NF4 with double quantization, rank 16 on all seven projections, adapters
in bfloat16, torch's fused AdamW. `kept` keeps all products and attention for the backward pass, `again` what enters a
block, `sent` what the link to CPU memory carries, which waits there; `captured` is the step as one CUDA graph. Unsloth
comes as shipped and with its switches, if it is installed. Prints the median and the least time of a step, tokens a
second, the peak of allocated memory after the model was made, the time until the first step was done, and losses.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SWITCHES = {
    "UNSLOTH_DECODE_CUDA_GRAPHS": "1", "UNSLOTH_BLOCK_CUDAGRAPHS": "1", "UNSLOTH_RMSNORM_SAVE_OUTPUT": "1",
    "UNSLOTH_GC_PREFETCH": "1",
}  # fmt: skip
WARM_UP = 4

# a step on a batch of tokens, which returns its loss
Take = Callable[[Any], Any]


def optimizer_of(model: Any) -> Any:
    import torch

    return torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-4, fused=True)


def ours(given: argparse.Namespace, *, captured: bool = False, **settings: Any) -> Take:
    from train_step import ours as adapted

    import lorakit

    model: Any = adapted(given.layers, False)
    lorakit.compile_blocks(model, **settings)
    step = lorakit.Step(model, optimizer_of(model))
    if captured:
        step.capture()
    return lambda ids: step({"input_ids": ids, "labels": ids})


def plain(model: Any) -> Take:
    optimizer = optimizer_of(model)

    def take(ids: Any) -> Any:
        ids = ids.cuda()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return take


def theirs(given: argparse.Namespace, *, checkpointing: bool) -> Take:
    import torch
    from train_step import theirs as adapted

    torch._dynamo.config.cache_size_limit = 64
    model: Any = adapted(given.layers, checkpointing)
    model.config.use_cache = False
    for layer in model.base_model.model.model.layers:
        layer.compile()
    return plain(model)


def unsloth(given: argparse.Namespace, *, checkpointing: bool) -> Take:
    import torch
    from unsloth import FastLanguageModel

    folder = Path(tempfile.gettempdir()) / f"lorakit-benchmark-llama-{given.layers}"
    if not folder.exists():
        _write(folder, given.layers)
    model, _ = FastLanguageModel.from_pretrained(
        str(folder), max_seq_length=given.tokens, dtype=torch.bfloat16, load_in_4bit=True
    )
    from train_step import TARGETS

    model = FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=16, target_modules=TARGETS, lora_dropout=0, bias="none",
        use_gradient_checkpointing="unsloth" if checkpointing else False,
    )  # fmt: skip
    for value in model.parameters():
        if value.requires_grad:
            value.data = value.data.to(torch.bfloat16)
    return plain(model.train())


def _write(folder: Path, layers: int) -> None:
    import torch
    from tokenizers import Tokenizer, models
    from train_step import base
    from transformers import PreTrainedTokenizerFast

    model = base(layers)
    model.config.use_cache = False
    model.save_pretrained(folder, max_shard_size="4GB")
    del model
    gc.collect()
    torch.cuda.empty_cache()
    words = {"<unk>": 0, "<s>": 1, "</s>": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)


# by name: who makes the step, with which settings and environment
ROWS: Mapping[str, tuple[Callable[..., Take], Mapping[str, Any], Mapping[str, str]]] = {
    "lorakit kept": (ours, {"kept": 1.0}, {}),
    "lorakit half kept": (ours, {"kept": 0.5}, {}),
    "lorakit again": (ours, {"kept": 0.0}, {}),
    "lorakit again, sent": (ours, {"kept": 0.0, "send": True}, {}),
    "lorakit sent": (ours, {"send": True}, {}),
    "lorakit kept, captured": (ours, {"kept": 1.0, "captured": True}, {}),
    "lorakit again, captured": (ours, {"kept": 0.0, "captured": True}, {}),
    "PEFT compiled, again": (theirs, {"checkpointing": True}, {}),
    "PEFT compiled, kept": (theirs, {"checkpointing": False}, {}),
    "Unsloth again": (unsloth, {"checkpointing": True}, {}),
    "Unsloth kept": (unsloth, {"checkpointing": False}, {}),
    "Unsloth again, switches": (unsloth, {"checkpointing": True}, SWITCHES),
    "Unsloth kept, switches": (unsloth, {"checkpointing": False}, SWITCHES),
}


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    import torch

    make, settings, _ = ROWS[name]
    torch.manual_seed(1)
    began = time.perf_counter()
    take = make(given, **settings)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 128000, (given.batch, given.tokens), generator=generator) for _ in range(4)]
    times, losses = [], []
    first = 0.0
    for number in range(given.steps + WARM_UP):
        torch.cuda.synchronize()
        start = time.perf_counter()
        losses.append(float(take(batches[number % 4])))
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        first = first or time.perf_counter() - began
    median = statistics.median(times[WARM_UP:])
    made = {
        "row": name,
        "ms": round(1e3 * median, 1),
        "least ms": round(1e3 * min(times[WARM_UP:]), 1),
        "tokens/s": round(given.batch * given.tokens / median),
        "peak GiB": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "until first step s": round(first, 1),
        "losses": [round(one, 4) for one in (*losses[:2], *losses[-2:])],
    }
    if given.profile:
        from captured_step import print_kernels

        print_kernels(lambda: take(batches[0]))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 32), ("batch", 2), ("tokens", 2048), ("steps", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rows", default=";".join(ROWS), metavar="NAME;NAME")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(given.only, given)), flush=True)
        return
    for name in given.rows.split(";"):
        command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
        done = subprocess.run(command, env={**os.environ, **ROWS[name][2]}, capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if given.profile or line.startswith("{")]
        why = done.stderr.strip().splitlines()[-1:] if done.returncode else []
        print("\n".join(lines or [json.dumps({"row": name, "failed": " ".join(why)[:300]})]), flush=True)


if __name__ == "__main__":
    main()
