"""What training on a quantized base costs in loss: the same model, text, seed and steps for every quantizer.

    python benchmarks/quantizer_loss.py [--targets @linear] [--steps 200] [--batch 4] [--tokens 96] [--held-out 128]
                                        [--lr 2e-4] [--seed 0] [QUANT ...]

LoRA of rank 16 on the targets, of the demo's SmolLM2-135M and its dialogues, on a GPU where there is one. QUANT is
what stands behind `quant` in a spec, such as `"hqq(bits=3)"`; without any: all that are built in and those of every
installed plugin. It stores the targets alone (`quantize @linear none`). The first row is the unquantized base. Exits
with 1 if `nf4 double` ends over 2 % above it.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import lorakit
from lorakit.data.source import read_data
from lorakit.data.tokens import IGNORED, split, tokenize
from lorakit.demo import dialogues, smollm2
from lorakit.plugins import default_plugins, load_plugins

BUILT_IN = ("nf4 double", "nf4", "fp4", "int8")
LIMIT = 1.02
CALIBRATION, LAST = 64, 20

Rows = Sequence[dict[str, list[int]]]


@dataclass(frozen=True)
class Result:
    """Bits of a base weight, losses (of the last steps, held out before and after) and seconds a step."""

    bits: float
    before: float
    training: float
    after: float
    step: float


def batch_of(rows: Rows, device: str) -> dict[str, Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)
    filling = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
    return {
        name: torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows], device=device)
        for name, value in filling.items()
    }


def batches(rows: Rows, size: int, seed: int) -> Iterator[Rows]:
    """Yield batches without end, in an order that the seed alone decides."""
    order = random.Random(seed)
    while True:
        shuffled = order.sample(rows, len(rows))
        yield from (shuffled[start : start + size] for start in range(0, len(rows) - size + 1, size))


@torch.no_grad()
def held_out_loss(model: nn.Module, rows: Rows, size: int, device: str) -> float:
    """Return the mean loss of a learned token."""
    model.eval()
    total = count = 0.0
    for start in range(0, len(rows), size):
        batch = batch_of(rows[start : start + size], device)
        learned = int((batch["labels"][:, 1:] != IGNORED).sum())
        total += float(model(**batch).loss) * learned
        count += learned
    model.train()
    return total / count


def mean_bits(summary: Any) -> float:
    """Return the bits of a base weight, over all adapted layers."""
    weights = [math.prod(row.shape) for row in summary.modules]
    return sum(row.bits_per_weight * count for row, count in zip(summary.modules, weights, strict=True)) / sum(weights)


def run(quant: str | None, train: Rows, held_out: Rows, settings: argparse.Namespace, device: str) -> Result:
    model: Any = AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.bfloat16)
    model.to(device)
    calibration = [batch_of([row], device) for row in train[:CALIBRATION]]
    rule = f"adapt {settings.targets} rank 16"
    spec = f"{rule} quant {quant}\nquantize @linear none" if quant else rule
    lorakit.apply(spec, model, seed=settings.seed, calibration=calibration)
    bits = mean_bits(lorakit.summary(model))
    before = held_out_loss(model, held_out, settings.batch, device)
    optimizer = lorakit.optimizer(model, lr=settings.lr)
    losses = []
    start = time.perf_counter()
    for _, rows in zip(range(settings.steps), batches(train, settings.batch, settings.seed), strict=False):
        loss = model(**batch_of(rows, device)).loss
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = (time.perf_counter() - start) / settings.steps
    after = held_out_loss(model, held_out, settings.batch, device)
    last = losses[-LAST:]
    return Result(bits, before, sum(last) / len(last), after, seconds)


def every_quantizer() -> list[str]:
    """Return the built-in ones and those that plugins add, with their default options."""
    return [*BUILT_IN, *sorted(default_plugins().quantizers.keys() - load_plugins().quantizers.keys())]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("quantizers", nargs="*", metavar="QUANT")
    for name, default in (("steps", 200), ("batch", 4), ("tokens", 96), ("held-out", 128), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--targets", default="@linear")
    parser.add_argument("--lr", type=float, default=2e-4)
    settings = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(torch.cuda.get_device_name() if device == "cuda" else "CPU", torch.__version__, vars(settings))
    tokenizer = AutoTokenizer.from_pretrained(smollm2())
    made = tokenize(read_data(dialogues(), default_plugins()).examples, tokenizer, settings.tokens)
    kept, out = split(made.rows, 0.1, settings.seed)
    train = [row.features for row in kept]
    held_out = [row.features for row in out[: settings.held_out]]
    print(
        f"{'quant':<28} {'bits':>6} {'held out before':>16} {'training':>9} {'held out':>9} {'ratio':>7} {'s/step':>7}"
    )
    ratios = {}
    base: Result | None = None
    for quant in (None, *(settings.quantizers or every_quantizer())):
        try:
            result = run(quant, train, held_out, settings, device)
        except lorakit.LorakitError as error:
            print(f"{quant:<28} {error}")
            continue
        base = base or result
        name = quant or "none"
        ratios[name] = result.after / base.after
        print(
            f"{name:<28} {result.bits:6.3f} {result.before:16.4f} {result.training:9.4f} {result.after:9.4f} "
            f"{ratios[name]:7.4f} {result.step:7.2f}",
            flush=True,
        )
    if ratios.get("nf4 double", 1.0) > LIMIT:
        raise SystemExit(f"nf4 double ends {ratios['nf4 double'] - 1:.1%} above the unquantized base")


if __name__ == "__main__":
    main()
