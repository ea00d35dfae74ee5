"""Steps on several devices: DistributedDataParallel and both layouts of `lorakit.shard`, beside PEFT's in the same run.

    torchrun --nproc-per-node 2 benchmarks/two_devices.py [--layers 32] [--batch 1] [--tokens 2048] [--only NAME,NAME]

A Llama's shape (Llama-3-8B's unless told otherwise) with random weights, quantized layer by layer into NF4 with double
quantization as it is made, so that no device ever holds it whole in bfloat16: both sides take over the same packed
weights. Rank 16 on all seven projections, adapters in bfloat16, torch's AdamW. Each process has `batch` rows a step.
For each row: the time of a step, tokens a second of all devices and as a multiple of one device's, what a device holds
between steps and at most, and the losses, which are near each other. `whole/2 + 10 %` is said of what `shard` holds.

Without a GPU it runs with gloo, for a look: --layers 2 --hidden 64 --intermediate 96 --heads 4 --kv-heads 2 --vocab 128
--tokens 16 --steps 2
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import lorakit

SPEC = "adapt @linear rank 16 alpha 16 dtype bf16"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = {
    "layers": 32, "hidden": 4096, "intermediate": 14336, "heads": 32, "kv-heads": 8, "vocab": 128256, "batch": 1,
    "tokens": 2048, "steps": 10,
}  # fmt: skip
WARM_UP = 3
MIB = 1 << 20


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def base(given: argparse.Namespace) -> Any:
    """Return a Llama whose layers bitsandbytes holds packed, made one weight after the other."""
    config = LlamaConfig(
        num_hidden_layers=given.layers, hidden_size=given.hidden, intermediate_size=given.intermediate,
        num_attention_heads=given.heads, num_key_value_heads=given.kv_heads, vocab_size=given.vocab,
        tie_word_embeddings=False, max_position_embeddings=8192,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16)
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device())
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and child is not model.lm_head:
                setattr(module, name, packed(child))
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.is_meta:
                made = random(parameter.shape) if parameter.ndim > 1 else torch.ones_like(parameter, device=device())
                module._parameters[name] = nn.Parameter(made, requires_grad=False)
    return model


def random(shape: torch.Size) -> Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device=device()).mul_(0.02)


def packed(linear: nn.Linear) -> nn.Module:
    layer = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4",
        device="meta",
    )  # fmt: skip
    # it repacks on some CPUs, for good
    layer.support_avx512bf16_for_cpu = False
    layer.weight = bnb.nn.Params4bit(
        random(linear.weight.shape), requires_grad=False, quant_type="nf4", compress_statistics=True
    )
    made: nn.Module = layer.to(device())
    return made


def ours(given: argparse.Namespace) -> Any:
    model: Any = lorakit.apply(SPEC, base(given)).train()
    if given.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def theirs(given: argparse.Namespace) -> Any:
    from peft import LoraConfig, get_peft_model

    model = base(given)
    config = LoraConfig(r=16, lora_alpha=16, target_modules=TARGETS)
    adapted: Any = get_peft_model(model, config, autocast_adapter_dtype=False)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    if given.checkpointing:
        adapted.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return adapted.train()


def parallel(model: nn.Module, optimizer: Callable[[nn.Module], Any]) -> tuple[nn.Module, Any]:
    return nn.parallel.DistributedDataParallel(model), optimizer(model)


def accelerated(model: nn.Module, optimizer: Callable[[nn.Module], Any]) -> tuple[nn.Module, Any]:
    from accelerate import Accelerator

    prepared: tuple[nn.Module, Any] = Accelerator(cpu=not torch.cuda.is_available()).prepare(model, optimizer(model))
    return prepared


def sharded(frozen: Any) -> Callable[..., tuple[nn.Module, Any]]:
    def spread(model: nn.Module, optimizer: Callable[[nn.Module], Any]) -> tuple[nn.Module, Any]:
        model = lorakit.shard(model, frozen=frozen)
        return model, optimizer(model)

    return spread


def alone(model: nn.Module, optimizer: Callable[[nn.Module], Any]) -> tuple[nn.Module, Any]:
    return model, optimizer(model)


# by name: whose, how it is spread; in a row that is alone the other processes wait
ROWS: dict[str, tuple[Callable[[argparse.Namespace], Any], Callable[..., tuple[nn.Module, Any]]]] = {
    "lorakit on one": (ours, alone),
    "lorakit DDP": (ours, parallel),
    "lorakit shard": (ours, sharded("shard")),
    "lorakit replicate": (ours, sharded("replicate")),
    "PEFT on one": (theirs, alone),
    "PEFT DDP by Accelerate": (theirs, accelerated),
}


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        [one for one in model.parameters() if one.requires_grad], lr=1e-4, fused=torch.cuda.is_available()
    )


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    make, spread = ROWS[name]
    is_alone = spread is alone
    rank, world = (0, 1) if is_alone else (dist.get_rank(), dist.get_world_size())
    model = make(given)
    whole = held(model)
    model, optimizer = spread(model, adamw)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    generator = torch.Generator().manual_seed(0)
    times, losses = [], []
    for number in range(given.steps + WARM_UP):
        ids = torch.randint(0, given.vocab, (given.batch * dist.get_world_size(), given.tokens), generator=generator)
        own = ids[rank * given.batch : (rank + 1) * given.batch].to(device())
        wait(is_alone)
        began = time.perf_counter()
        loss = model(input_ids=own, labels=own).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        wait(is_alone)
        times.append(time.perf_counter() - began)
        losses.append(loss.detach())
        if number == 0:
            between = allocated()
    median = statistics.median(times[WARM_UP:])
    total = torch.stack(losses[-3:]).float()
    if not is_alone:
        dist.all_reduce(total)
    made = {
        "ms": round(1e3 * median, 1),
        "tokens/s": round(world * given.batch * given.tokens / median),
        "parameters MiB": round(held(model) / MIB, 2),
        "of whole MiB": round(whole / MIB, 2),
        "between steps MiB": round(between / MIB, 1),
        "peak MiB": round(peak() / MIB, 1),
        "losses": [round(float(one), 4) for one in total / world],
    }
    if name == "lorakit shard":
        made["within whole/N + 10 %"] = held(model) <= whole / world * 1.1
    return made


def wait(is_alone: bool) -> None:
    """Have all work on the devices done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    if not is_alone:
        dist.barrier()


def held(model: nn.Module) -> int:
    """Return the bytes of parameters that lie here; PEFT's four-bit scales, which are none, do not count."""
    parts = (one.to_local() if hasattr(one, "to_local") else one for one in model.parameters())
    return sum(part.numel() * part.element_size() for part in parts)


def allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def run(name: str, given: argparse.Namespace) -> dict[str, Any] | None:
    """Measure a row, in all processes or in the first; a row that fails says why, and the next one comes."""
    result: dict[str, Any] | None = None
    if ROWS[name][1] is not alone or dist.get_rank() == 0:
        try:
            result = measure(name, given)
        except (RuntimeError, TypeError, lorakit.LorakitError, lorakit.TrainingError) as error:
            result = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    dist.barrier()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--checkpointing", action="store_true", help="compute decoder layers again in backward")
    parser.add_argument("--only", default=",".join(ROWS), metavar="NAME,NAME")
    given = parser.parse_args()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device())
    else:
        dist.init_process_group("gloo")
    is_first = dist.get_rank() == 0
    if is_first:
        where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPUs"
        print(f"{dist.get_world_size()} × {where}, torch {torch.__version__}, {vars(given)}, {SPEC}", flush=True)
    single: dict[str, float] = {}
    for name in given.only.split(","):
        result = run(name, given)
        if not is_first or result is None:
            continue
        whose = name.split()[0]
        if "on one" in name and "tokens/s" in result:
            single[whose] = result["tokens/s"]
        elif whose in single and "tokens/s" in result:
            result["times one"] = round(result["tokens/s"] / single[whose], 3)
        print(name, json.dumps(result), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
