"""Quantizing a checkpoint while it is read: peak memory and time, against transformers with bitsandbytes in one run.

    python benchmarks/streaming.py [--layers 14] [--hidden 3072] [--dtype bfloat16] [--rounds 1] [--folder PLACE]

Writes a random Llama of 3 GB in bfloat16, a shard a layer, and deletes it at the end. Both sides read it, quantize
every Linear but the head to NF4 with double quantization on the CPU, and write the quantized model, in turn, so many
rounds; the figures are medians. Peaks are those of whole processes, as the system counts them; what a process holds
that only made the plan and quantized one small matrix is told beside them, and the processor's seconds that each side
takes for a model of a layer 128 wide, which are those of imports and the like. The files are dropped from the system's
cache before each run where the system allows it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import lorakit
from lorakit.builtin.fourbit import NF4

SPEC = "adapt q_proj,v_proj rank 16 quant nf4 double\nquantize @linear nf4 double\n"
MIB = 2**20
IDLE = """
import sys, pathlib, torch, lorakit
lorakit.plan(pathlib.Path(sys.argv[1]), sys.argv[2])
lorakit.apply("quantize 0 nf4 double", torch.nn.Sequential(torch.nn.Linear(64, 64)))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""
THEIRS = """
import sys, torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], quantization_config=config, dtype="auto")
model.save_pretrained(sys.argv[2], max_shard_size="2GB")
"""


def write_model(folder: Path, layers: int, hidden: int, dtype: torch.dtype) -> LlamaForCausalLM:
    """Write a random Llama shard by shard and return its structure, on meta tensors."""
    folder.mkdir()
    config = LlamaConfig(
        num_hidden_layers=layers, hidden_size=hidden, intermediate_size=hidden * 8 // 3, vocab_size=32000,
        num_attention_heads=hidden // 128, num_key_value_heads=max(1, hidden // 512), tie_word_embeddings=False,
        dtype=dtype,
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
        model.to(dtype)
    shards: dict[str, list[str]] = {}
    for name in model.state_dict():
        parts = name.split(".")
        shards.setdefault(parts[2] if parts[1] == "layers" else "rest", []).append(name)
    weight_map: dict[str, str] = {}
    for shard, names in shards.items():
        torch.manual_seed(0)
        tensors = {name: torch.randn(model.state_dict()[name].shape, dtype=dtype).mul_(0.02) for name in names}
        save_file(tensors, folder / f"model-{shard}.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, f"model-{shard}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config.save_pretrained(folder)
    return model


def forget(folder: Path) -> None:
    """Ask the system to drop a folder's files from its cache."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(command: Sequence[str | Path]) -> dict[str, float]:
    """Run a process; return its seconds, the processor's, its peak memory, and the peak of what is no mapped file."""
    start, own = time.perf_counter(), 0
    child = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL)
    while True:
        finished, status, usage = os.wait4(child.pid, os.WNOHANG)
        if finished:
            break
        own = max([own, *anonymous(child.pid)])
        time.sleep(0.02)
    if status:
        raise SystemExit(f"{command} failed")
    used = {"s": time.perf_counter() - start, "cpu_s": usage.ru_utime + usage.ru_stime}
    return used | {"peak_mib": usage.ru_maxrss / 1024, "own_mib": own / 1024}


def anonymous(pid: int) -> Iterator[int]:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            yield int(line.split()[1])


def read_rate(folder: Path) -> float:
    """Return MiB a second of reading the shards one after the other."""
    forget(folder)
    size, start, buffer = 0, time.perf_counter(), bytearray(16 * MIB)
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                size += count
    return size / MIB / (time.perf_counter() - start)


def quantize_rate(hidden: int) -> float:
    """Return MiB of bfloat16 a second that the quantizer takes."""
    weight = torch.randn(hidden * 8 // 3, hidden, dtype=torch.bfloat16)
    quantizer = NF4(double=True)
    quantizer.quantize(weight)
    start = time.perf_counter()
    for _ in range(5):
        quantizer.quantize(weight)
    return 5 * weight.nbytes / MIB / (time.perf_counter() - start)


def same_bits(one: Path, other: Path) -> bool:
    """Whether two model folders hold equal tensors under equal names."""
    held = [
        {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}
        for folder in (one, other)
    ]
    return held[0].keys() == held[1].keys() and all(torch.equal(held[0][name], held[1][name]) for name in held[0])


def compare(place: Path, model: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Return the medians of both sides over so many rounds, which leave what they wrote in `place`."""
    found: dict[str, list[dict[str, float]]] = {"lorakit": [], "transformers": []}
    for _ in range(rounds):
        for old in (place / "ours", place / "theirs"):
            shutil.rmtree(old, ignore_errors=True)
        forget(model)
        mine = run(["-m", "lorakit", "apply", place / "spec.lora", model, "-o", place / "ours", "--with-base"])
        forget(model)
        found["lorakit"].append(mine)
        found["transformers"].append(run(["-c", THEIRS, model, place / "theirs"]))
    return {
        side: {name: statistics.median(one[name] for one in runs) for name in runs[0]} for side, runs in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--hidden", type=int, default=3072)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None, help="where the model is written for the run")
    arguments = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="streaming.", dir=arguments.folder))
    model, spec, dtype = place / "model", place / "spec.lora", getattr(torch, arguments.dtype)
    spec.write_text(SPEC)
    try:
        structure = write_model(model, arguments.layers, arguments.hidden, dtype)
        write_model(place / "small", 1, 128, dtype)
        plan = lorakit.plan(SPEC, structure)
        largest = max(value.nbytes for value in structure.state_dict().values())
        idle = subprocess.run([sys.executable, "-c", IDLE, spec, model], stdout=subprocess.PIPE, check=True)
        rates = {"read_mib_s": read_rate(model), "quantize_mib_s": quantize_rate(arguments.hidden)}
        small = compare(place, place / "small", 1)
        figures = compare(place, model, arguments.rounds)
        is_same = same_bits(place / "ours" / "base", place / "theirs")
    finally:
        shutil.rmtree(place)
    report = {
        "torch": torch.__version__,
        "cpus": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "model_mib": plan.memory.weights_before / MIB,
        "quantized_mib": plan.memory.weights / MIB,
        "bound_mib": (plan.memory.weights + 2 * largest) / MIB,
        "idle_mib": int(idle.stdout) / 1024,
        **figures,
        "small_cpu_s": {side: found["cpu_s"] for side, found in small.items()},
        "same_bits": is_same,
        **rates,
        "limited_by": min(rates, key=lambda name: rates[name]),
    }
    print(json.dumps(report, indent=1, default=str))


if __name__ == "__main__":
    main()
