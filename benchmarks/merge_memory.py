"""Peak memory of `lorakit merge` against PEFT's merge_and_unload and save_pretrained, on the same files in one run.

    python benchmarks/merge_memory.py [--layers 24] [--shard 1GB]

Makes a Llama of random bfloat16 weights (2.7 GB with 24 layers) in several files and a rank-16 adapter on seven
projections of every layer. Each side runs in a process of its own; its peak resident memory counts the pages of files
that it maps.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make(folder: Path, layers: int, shard: str) -> None:
    """Write the base model and an adapter with random B."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=layers, hidden_size=2048, intermediate_size=5632, num_attention_heads=16,
        num_key_value_heads=16, vocab_size=32000, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(config)
    model.save_pretrained(folder / "base", max_shard_size=shard)
    adapted = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS))
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.01)
    adapted.save_pretrained(str(folder / "adapter"))


def ours(folder: Path) -> None:
    from lorakit.cli.main import app

    app(
        ["merge", str(folder / "adapter"), str(folder / "base"), "-o", str(folder / "lorakit")],
        standalone_mode=False,
    )


def theirs(folder: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype="auto")
    PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload().save_pretrained(folder / "peft")


def imports(folder: Path) -> None:
    """What both import, with nothing to do."""
    import peft  # noqa: F401
    import transformers

    transformers.LlamaForCausalLM  # noqa: B018


def difference(folder: Path) -> None:
    """Print the largest difference of two merged weights, and the largest weight there."""
    from safetensors import safe_open

    places = {
        name: file
        for file in sorted((folder / "lorakit").glob("*.safetensors"))
        for name in safe_open(file, "pt").keys()  # noqa: SIM118
    }
    worst, largest = 0.0, 0.0
    for file in sorted((folder / "peft").glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                other = opened.get_tensor(name).float()
                mine = safe_open(places[name], "pt").get_tensor(name).float()
                worst = max(worst, float((mine - other).abs().max()))
                largest = max(largest, float(other.abs().max()))
    print(f"largest difference of two merged weights: {worst:.3g}, largest weight {largest:.3g}")


SIDES = {"imports": imports, "lorakit": ours, "peft": theirs}
# a process starts with the peak of the one that started it: whoever starts a side must stay small
STEPS = {**SIDES, "compare": difference}


def run(side: str, folder: Path) -> None:
    """Measure one side in this process and print the figures as JSON on the last line."""
    start = time.perf_counter()
    STEPS[side](folder)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--shard", default="1GB")
    parser.add_argument("--side", choices=("make", *STEPS))
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.side == "make":
        make(arguments.folder, arguments.layers, arguments.shard)
        return
    if arguments.side:
        run(arguments.side, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        step = [sys.executable, __file__, "--folder", str(folder), "--side"]
        sizes = ["--layers", str(arguments.layers), "--shard", arguments.shard]
        subprocess.run([*step, "make", *sizes], capture_output=True, check=True)
        files = sorted((folder / "base").glob("*.safetensors"))
        size = sum(file.stat().st_size for file in files)
        print(f"base: {size / 2**20:,.0f} MiB in {len(files)} files")
        figures = {}
        for side in SIDES:
            done = subprocess.run([*step, side], capture_output=True, text=True, check=True)
            figures[side] = json.loads(done.stdout.splitlines()[-1])
            print(f"{side:8} {figures[side]['seconds']:7.1f} s {figures[side]['peak_mib']:8,.0f} MiB")
        mine, peer = figures["lorakit"], figures["peft"]
        print(f"ratio    {mine['seconds'] / peer['seconds']:7.2f}   {mine['peak_mib'] / peer['peak_mib']:8.2f}")
        print(subprocess.run([*step, "compare"], capture_output=True, text=True, check=True).stdout.splitlines()[0])


if __name__ == "__main__":
    main()
