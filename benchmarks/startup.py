"""How long a person waits before anything happens: `check` on long specs, and `plan` on a very large model's config.

    python benchmarks/startup.py [--runs 3]

Whole processes, wall time, CPU time and peak memory, medians, with bytecode cached as an installation has it; on a
machine that does other work the CPU time says more. The peer of `plan` is PEFT's get_peft_model on the same structure
on meta tensors, with its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

LLAMA_405B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 126,
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
}
STATEMENT = "adapt layers.{0}.q_proj,layers.{0}.v_proj rank {1} alpha 2*rank quant nf4 double paged\n"
PEFT = """
import sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
from peft import LoraConfig, get_peft_model
with torch.device("meta"):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(sys.argv[1]))
    get_peft_model(model, LoraConfig(r=16, target_modules=["q_proj", "v_proj"])).print_trainable_parameters()
"""


class Taken(NamedTuple):
    """What a process took: wall time and CPU time in seconds, and peak memory in MiB."""

    wall: float
    cpu: float
    peak: float


def measure(command: list[str], runs: int, environment: dict[str, str]) -> Taken:
    """Return the medians of what a command takes, once it has run."""
    taken = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        # wait4 tells what this one process took
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        if status != 0:
            raise SystemExit(f"{' '.join(command[:4])} … failed")
        taken.append(Taken(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024))
    return Taken(*map(statistics.median, zip(*taken[1:], strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    lorakit = [sys.executable, "-m", "lorakit"]
    with tempfile.TemporaryDirectory() as folder:
        one, long, longer = (Path(folder, f"{count}.lora") for count in (1, 2000, 10000))
        for path in (one, long, longer):
            count = int(path.stem)
            path.write_text("".join(STATEMENT.format(line, line % 64 + 1) for line in range(count)))
        Path(folder, "config.json").write_text(json.dumps(LLAMA_405B))
        spec = Path(folder, "qlora.lora")
        spec.write_text("adapt q_proj,v_proj rank 16 quant nf4 double paged\n")
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

        def taken(*command: str) -> Taken:
            return measure(list(command), runs, environment)

        rows = {
            "python alone": taken(sys.executable, "-c", "pass"),
            "check, 1 statement": taken(*lorakit, "check", str(one)),
            "check, 2,000 statements": taken(*lorakit, "check", str(long)),
            "check, 10,000 statements": taken(*lorakit, "check", str(longer)),
            "import torch": taken(sys.executable, "-c", "import torch"),
            "plan, Llama-3-405B shape": taken(*lorakit, "plan", str(spec), folder),
            "get_peft_model on meta, the same": taken(sys.executable, "-c", PEFT, folder),
        }
    for name, (wall, cpu, peak) in rows.items():
        print(f"{name:36} {wall:7.2f} s {cpu:7.2f} s of CPU {peak:8.0f} MiB")
    ours, theirs = rows["plan, Llama-3-405B shape"], rows["get_peft_model on meta, the same"]
    time_, memory = ours.cpu / theirs.cpu, ours.peak / theirs.peak
    print(f"plan over get_peft_model: {time_:.2f} of the CPU time, {memory:.2f} of the memory")


if __name__ == "__main__":
    main()
