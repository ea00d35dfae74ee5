"""How long a person waits before anything happens: `check` on long specs, and `plan` on a very large model's config.

    python benchmarks/startup.py [--runs 3]

Whole processes, wall time and peak memory, medians. The peer of `plan` is PEFT's get_peft_model on the same structure
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


def measure(command: list[str], runs: int) -> tuple[float, float]:
    """Return the median wall time in seconds and peak memory in MiB of a command."""
    times, peaks = [], []
    for _ in range(runs):
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # wait4 tells the peak memory of this one process
        _, status, usage = os.wait4(process.pid, 0)
        times.append(time.perf_counter() - start)
        peaks.append(usage.ru_maxrss / 1024)
        if status != 0:
            raise SystemExit(f"{' '.join(command[:4])} … failed")
    return statistics.median(times), statistics.median(peaks)


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
        rows = {
            "check, 1 statement": measure([*lorakit, "check", str(one)], runs),
            "check, 2,000 statements": measure([*lorakit, "check", str(long)], runs),
            "check, 10,000 statements": measure([*lorakit, "check", str(longer)], runs),
            "import torch": measure([sys.executable, "-c", "import torch"], runs),
            "plan, Llama-3-405B shape": measure([*lorakit, "plan", str(spec), folder], runs),
            "get_peft_model on meta, the same": measure([sys.executable, "-c", PEFT, folder], runs),
        }
    for name, (seconds, peak) in rows.items():
        print(f"{name:36} {seconds:7.2f} s {peak:8.0f} MiB")
    ours, theirs = rows["plan, Llama-3-405B shape"], rows["get_peft_model on meta, the same"]
    print(f"plan over get_peft_model: {ours[0] / theirs[0]:.2f} of the time, {ours[1] / theirs[1]:.2f} of the memory")


if __name__ == "__main__":
    main()
