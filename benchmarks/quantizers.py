"""Every installed quantizer side by side: bits a weight, error, and speed against bitsandbytes' nf4, in one run.

    python benchmarks/quantizers.py [--layers 6] [--size 2048] [--repeats 5] [--only 'nf4(blocksize=128) double' …]

Takes whatever the installed plugins register, through the quantizer protocol alone: each plain, `double` where it has
that, and with every choice of an option that says how many bits. Weights: Gaussian (size × size) in bfloat16, and the
linear layers of some layers of SmolLM2-135M-Instruct, fetched as `lorakit demo` does. Speed is that on the Gaussian
weight: the median over the repeats of the time over that of bitsandbytes.functional's nf4 right beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import time
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

import lorakit
from lorakit.artifacts.quantization_error import QuantizationError, measure, together
from lorakit.demo import smollm2
from lorakit.hooks.options import configure, options_of, supports_double
from lorakit.language.printer import call_text
from lorakit.language.statements import PluginCall, Quantize
from lorakit.plugins import default_plugins

PEER = "nf4"


@dataclasses.dataclass(frozen=True)
class Row:
    """One quantizer as configured: its errors on both kinds of weights, and its times over bitsandbytes' nf4."""

    call: PluginCall
    gaussian: QuantizationError
    model: QuantizationError
    quantize: float
    dequantize: float


def variants() -> Iterator[PluginCall]:
    """Yield every installed quantizer plain, with each choice of its bits, and each of these with `double`."""
    for name, quantizer in default_plugins().quantizers.items():
        bits: list[tuple[tuple[str, Any], ...]] = [
            ((option.name, choice),)
            for option in options_of(quantizer)
            if "bits" in option.name and typing.get_origin(option.type) is Literal
            for choice in typing.get_args(option.type)
        ]
        for options in bits or [()]:
            yield PluginCall(name, options)
            if supports_double(quantizer):
                yield PluginCall(name, options, double=True)


def named(text: str) -> PluginCall:
    """Return a quantizer as a spec writes it."""
    (rule,) = lorakit.parse(f"quantize weight {text}").rules
    assert isinstance(rule, Quantize) and rule.quant is not None
    return rule.quant


def model_weights(layers: int) -> list[Tensor]:
    """Return the linear layers' weights of so many decoder layers, evenly spread."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.bfloat16)
    count = model.config.num_hidden_layers
    chosen = {round(index * (count - 1) / max(1, layers - 1)) for index in range(min(layers, count))}
    return [
        module.weight.detach()
        for index in sorted(chosen)
        for module in model.model.layers[index].modules()
        if isinstance(module, torch.nn.Linear)
    ]


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratio(mine: Callable[[], Any], peer: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Return the median over the repeats of one time over the other's, measured in turn."""
    mine(), peer()
    return statistics.median(seconds(mine, device) / seconds(peer, device) for _ in range(repeats))


def row(call: PluginCall, gaussian: Tensor, weights: list[Tensor], repeats: int) -> Row:
    import bitsandbytes.functional as bnb

    quantizer = configure(default_plugins().quantizers[call.name], call)

    def error(weight: Tensor) -> QuantizationError:
        quantized = quantizer.quantize(weight)
        return measure(weight, quantized, quantizer.dequantize(quantized))

    quantized = quantizer.quantize(gaussian)
    packed, state = bnb.quantize_4bit(gaussian, blocksize=64, quant_type=PEER)
    return Row(
        call,
        error(gaussian),
        together(error(weight.to(gaussian.device)) for weight in weights),
        ratio(
            lambda: quantizer.quantize(gaussian),
            lambda: bnb.quantize_4bit(gaussian, blocksize=64, quant_type=PEER),
            repeats,
            gaussian.device,
        ),
        ratio(
            lambda: quantizer.dequantize(quantized),
            lambda: bnb.dequantize_4bit(packed, state),
            repeats,
            gaussian.device,
        ),
    )


def line(found: Row) -> str:
    def figures(error: QuantizationError) -> str:
        sqnr = "lossless" if error.sqnr_db is None else f"{error.sqnr_db:.2f} dB"
        return f"{error.bits_per_weight:.3f} | {error.relative_error or 0:.2%} | {sqnr}"

    origin = default_plugins().origin(default_plugins().quantizers[found.call.name]).partition(" (")[0]
    return (
        f"| {call_text(found.call)} | {origin} | {figures(found.gaussian)} | {figures(found.model)} "
        f"| {found.quantize:.2f} | {found.dequantize:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", type=int, default=6, help="decoder layers of the model, evenly spread")
    parser.add_argument("--size", type=int, default=2048, help="side of the Gaussian weight")
    parser.add_argument("--repeats", type=int, default=5, help="times of each speed")
    parser.add_argument("--only", nargs="+", metavar="QUANTIZER", help="as a spec writes them, in the place of all")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    print(f"{where}, torch {torch.__version__}, {vars(arguments)}\n")
    generator = torch.Generator().manual_seed(0)
    gaussian = torch.randn(arguments.size, arguments.size, generator=generator).mul(0.02).bfloat16().to(device)
    weights = model_weights(arguments.layers)
    print(
        "| quantizer | from | bits | error | SQNR | bits, model | error, model | SQNR, model | quantize | dequantize |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    failed = []
    for call in [named(text) for text in arguments.only] if arguments.only else variants():
        try:
            print(line(row(call, gaussian, weights, arguments.repeats)), flush=True)
        except Exception as error:
            # one that needs a GPU, or kernels that are not here, must not keep the others from being measured
            failed.append(f"{call_text(call)}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
    print(*[f"\nnot measured: {reason}" for reason in failed], sep="")


if __name__ == "__main__":
    main()
