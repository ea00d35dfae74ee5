"""One QLoRA training step, lorakit against PEFT with bitsandbytes, in one run on one GPU.

    python benchmarks/train_step.py [--layers 8] [--batch 2] [--tokens 2048] [--steps 10] [--compile]

A Llama-3-8B-shaped model with random weights: NF4 with double quantization, rank 16 on all seven projections, adapters
in bfloat16, torch's fused AdamW on both sides. Prints medians and ratios, and the memory forecast beside the peak. With
--compile every decoder layer is compiled on both sides too.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import lorakit

SPEC = "adapt @linear rank 16 alpha 16 quant nf4 double"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def shape(layers: int) -> LlamaConfig:
    return LlamaConfig(
        num_hidden_layers=layers, hidden_size=4096, intermediate_size=14336, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=False, max_position_embeddings=8192,
        dtype="bfloat16",
    )  # fmt: skip


def base(layers: int) -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(shape(layers))
    torch.set_default_dtype(torch.float32)
    return model


def ours(layers: int, checkpointing: bool) -> nn.Module:
    model: Any = lorakit.apply(SPEC, base(layers))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def theirs(layers: int, checkpointing: bool) -> nn.Module:
    import bitsandbytes as bnb
    from peft import LoraConfig, get_peft_model

    model = base(layers)
    for parent in list(model.model.layers.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                layer = bnb.nn.Linear4bit(
                    child.in_features, child.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
                )
                layer.weight = bnb.nn.Params4bit(
                    child.weight.data.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True
                )
                setattr(parent, name, layer.to("cuda"))
    config = LoraConfig(r=16, lora_alpha=16, target_modules=TARGETS)
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    if checkpointing:
        adapted.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return adapted.train()


def measure(
    make: Callable[[int, bool], nn.Module], arguments: argparse.Namespace, checkpointing: bool, compiled: bool
) -> dict[str, float]:
    torch._dynamo.reset()
    model = make(arguments.layers, checkpointing)
    if compiled:
        for module in model.modules():
            if isinstance(module, LlamaDecoderLayer):
                module.compile()
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    ids = torch.randint(0, 128000, (arguments.batch, arguments.tokens), device="cuda")
    times = []
    for step in range(arguments.steps + 3):
        if step == 3:
            torch.cuda.reset_peak_memory_stats()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    peak = torch.cuda.max_memory_allocated() / 2**30
    held = {"trainable": sum(value.numel() for value in trained), "ms": statistics.median(times[3:]), "peak_gib": peak}
    del model, optimizer, trained
    gc.collect()
    torch.cuda.empty_cache()
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, default in (("layers", 8), ("batch", 2), ("tokens", 2048), ("steps", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    print(torch.cuda.get_device_name(), torch.__version__, vars(arguments))
    # one layer's code serves all of them
    torch._dynamo.config.cache_size_limit = 64
    plan = lorakit.plan(SPEC, shape(arguments.layers), batch=arguments.batch, tokens=arguments.tokens)
    for compiled in (False, True)[: 1 + arguments.compile]:
        for checkpointing in (False, True):
            mine, peer = (measure(make, arguments, checkpointing, compiled) for make in (ours, theirs))
            print(json.dumps({
                "compiled": compiled,
                "checkpointing": checkpointing,
                "lorakit": mine,
                "peft": peer,
                "time_ratio": round(mine["ms"] / peer["ms"], 3),
                "memory_ratio": round(mine["peak_gib"] / peer["peak_gib"], 3),
                **({} if checkpointing else {"forecast_gib": round(plan.memory.peak / 2**30, 2)}),
            }))  # fmt: skip


if __name__ == "__main__":
    main()
