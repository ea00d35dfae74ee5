"""What a forward call costs beside its kernels: lorakit's layers on a tiny input, in units of one nn.Linear call.

    python benchmarks/host_time.py [--size 32] [--rounds 400] [--batch 2]

Everything is called in turn, again and again, and medians are compared; PEFT's LoRA layer and bitsandbytes' four-bit
layer run beside in the same process. Gradients are on, as in training.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import bitsandbytes as bnb
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import lorakit

CALLS = 20


def layers(size: int) -> Mapping[str, nn.Module]:
    """Return the layers by name; all compute with weights (size, size)."""

    def model() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(size, size, bias=False))

    def ours(spec: str) -> nn.Module:
        return lorakit.apply(spec, model()).get_submodule("0")

    def four_bits(nested: bool) -> nn.Module:
        layer = bnb.nn.Linear4bit(size, size, bias=False, compress_statistics=nested, quant_type="nf4")
        layer.load_state_dict(model()[0].state_dict())
        # its packing for some processors computes something else
        layer.support_avx512bf16_for_cpu = False
        return layer.to("cpu")

    peft = get_peft_model(model(), LoraConfig(r=4, lora_alpha=8, target_modules=["0"]))
    return {
        "nn.Linear": model()[0],
        "lorakit LoRALinear": ours("adapt 0 rank 4 alpha 8"),
        "PEFT lora.Linear": peft.get_submodule("base_model.model.0"),
        "lorakit nf4": ours("quantize 0 nf4"),
        "bitsandbytes nf4": four_bits(nested=False),
        "lorakit nf4 double": ours("quantize 0 nf4 double"),
        "bitsandbytes nf4 double": four_bits(nested=True),
        "lorakit LoRALinear on nf4 double": ours("adapt 0 rank 4 alpha 8 quant nf4 double"),
    }


def seconds(call: Callable[[Tensor], Tensor], x: Tensor) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        call(x)
    return (time.perf_counter() - start) / CALLS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--batch", type=int, help="inputs (batch, rows, size), as language models have them")
    parser.add_argument("--inference", action="store_true", help="without gradients")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(not arguments.inference)
    batch = () if arguments.batch is None else (arguments.batch,)
    x = torch.randn(*batch, arguments.rows, arguments.size, requires_grad=not arguments.inference)
    every = layers(arguments.size)
    times: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(arguments.rounds):
        for name, layer in every.items():
            times[name].append(seconds(layer, x))
    unit = statistics.median(times["nn.Linear"])
    print(f"torch {torch.__version__}, bitsandbytes {bnb.__version__}; one nn.Linear call: {unit * 1e6:.1f} µs")
    for name, taken in times.items():
        print(f"{name:<34} {statistics.median(taken) / unit:5.1f}")


if __name__ == "__main__":
    main()
