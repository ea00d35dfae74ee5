"""Products of few rows with four-bit weights, and tokens a second of greedy generation, with PEFT's in the same run.

    python benchmarks/decoding.py products [--rank 16] [--rows 1 8 64] [--slots 0] [--define BLOCKS=2]
    python benchmarks/decoding.py tokens [--layers 32] [--batch 1 8] [--prompt 128] [--new 64] [--only lorakit,peft]
    python benchmarks/decoding.py profile [--layers 32] [--batch 1]

Prints JSON lines. A product of several heights is that of several weights with one input. Its time is that of one in a
CUDA graph over weights that no cache holds together; beside it are torch's product in bf16 and bitsandbytes' own in
four bits. The model is Llama-3-8B-shaped with random weights: NF4 with double quantization, rank 16 on all seven
projections, adapters in bf16.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor
from train_step import ours, theirs

import lorakit
from lorakit.builtin.fourbit import NF4
from lorakit.layers.kernels import (
    few_rows,  # noqa: F401  (registers torch.ops.lorakit.few_rows_4bit)
    few_rows_cuda,
)
from lorakit.layers.kernels.fourbit import dequantize_4bit
from lorakit.layers.kernels.nvrtc import compiled

# heights of the weights that read one input, and its width
SHAPES = (
    ((4096,), 4096),
    ((14336,), 4096),
    ((4096,), 14336),
    ((1024,), 4096),
    ((4096, 1024, 1024), 4096),
    ((14336, 14336), 4096),
)
ROWS = (1, 2, 4, 8, 16, 32, 64)
# of what a quantizer stores, in the op's order
NAMES = ("packed", "absmax", "nested_absmax", "nested_offset")
# bytes of weights that are gone through in turn, more than an L2 cache holds
AROUND = 2**28
# of nf4 with doubled scales
BYTES = 0.516


def timed(run: Callable[[int], Any], count: int) -> float:
    """Return µs of each of `count` runs, as one graph where they can be captured."""
    run(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(count):
            run(index)
    times = []
    for _ in range(12):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / count)
    return statistics.median(times[2:])


def products(arguments: argparse.Namespace) -> None:
    if arguments.slots:
        usual = few_rows_cuda.slots
        # the usual is asked too: it allows shared memory
        vars(few_rows_cuda)["slots"] = lambda *given: arguments.slots if usual(*given) else 0
    if arguments.define:
        vars(few_rows_cuda)["compiled"] = lambda source, name, defines, device: compiled(
            source, name, [*defines, *arguments.define], device
        )
    for heights, n_in in SHAPES:
        products_of(heights, n_in, arguments.rank, arguments.rows)
        torch.cuda.empty_cache()


def products_of(heights: tuple[int, ...], n_in: int, rank: int, all_rows: Sequence[int]) -> None:
    size = sum(heights) * n_in
    several, count = max(2, AROUND // (2 * size)), max(2, int(AROUND / (BYTES * size)))
    dense = [[normal(height, n_in) for height in heights] for _ in range(several)]
    stored = [[NF4(double=True).quantize(one).tensors for one in dense[index % several]] for index in range(count)]
    states = [
        [
            bnb.functional.quantize_4bit(one, quant_type="nf4", compress_statistics=True)
            for one in dense[index % several]
        ]
        for index in range(count)
    ]
    lora_A, lora_B = [normal(rank, n_in) for _ in heights], [normal(height, rank) for height in heights]
    none = [None] * len(heights)

    def few(x: Tensor, index: int, factors: tuple[Any, Any]) -> list[Tensor]:
        held = [[one[name] for one in stored[index]] for name in NAMES]
        result: list[Tensor] = torch.ops.lorakit.few_rows_4bit(
            x, *held, none, *factors, [1.0] * len(heights), list(heights), 64, "nf4"
        )
        return result

    def dequantized(x: Tensor, index: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
        return [
            x @ dequantize_4bit(one, 64, "nf4", [height, n_in], dtype).t()
            for one, height in zip(stored[index], heights, strict=True)
        ]

    def plain(x: Tensor, index: int) -> list[Tensor]:
        return [torch.mm(x, one.t()) for one in dense[index]]

    def theirs_4bit(x: Tensor, index: int) -> list[Tensor]:
        return [bnb.matmul_4bit(x, packed.t(), state) for packed, state in states[index]]

    for rows in all_rows:
        x = torch.randn(rows, n_in, device="cuda", dtype=torch.bfloat16)
        exact = dequantized(x.float(), 0, torch.float32)
        both = [
            one + (x.float() @ A.float().t()) @ B.float().t() for one, A, B in zip(exact, lora_A, lora_B, strict=True)
        ]
        line: dict[str, Any] = {
            "heights": heights,
            "n_in": n_in,
            "rows": rows,
            "error": f"{_largest_error(few(x, 0, (none, none)), exact):.1e}",
            "error_dequantized": f"{_largest_error(dequantized(x, 0), exact):.1e}",
            "error_adapted": f"{_largest_error(few(x, 0, (lora_A, lora_B)), both):.1e}",
        }
        runs: dict[str, tuple[Callable[[int], Any], int]] = {
            "us": (partial(few, x, factors=(none, none)), count),
            "us_adapted": (partial(few, x, factors=(lora_A, lora_B)), count),
            "us_bf16": (partial(plain, x), several),
            "us_dequantized": (partial(dequantized, x), count),
            "us_bitsandbytes": (partial(theirs_4bit, x), count),
        }
        for name, (run, times) in runs.items():
            try:
                line[name] = round(timed(run, times), 2)
            except Exception as error:
                line[name] = f"{type(error).__name__}: {str(error)[:80]}"
        line["ratio_to_bf16"] = round(line["us"] / line["us_bf16"], 3)
        line["tb_s"] = round(size * BYTES / line["us"] / 1e6, 2)
        print(json.dumps(line), flush=True)


def normal(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16) * 0.02


def _largest_error(results: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    return max(_error(one, other) for one, other in zip(results, exact, strict=True))


def _error(result: Tensor, exact: Tensor) -> float:
    return float((result.float() - exact).norm() / exact.norm())


def adapted(make: Any, layers: int) -> Any:
    model: Any = make(layers, False)
    model.eval()
    model.config.use_cache = True
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    return model


def tokens(arguments: argparse.Namespace) -> None:
    for name in arguments.only.split(","):
        tokens_of(name, arguments)
        gc.collect()
        torch.cuda.empty_cache()


def tokens_of(whose: str, arguments: argparse.Namespace) -> None:
    model = adapted(theirs if whose == "peft" else ours, arguments.layers)
    ways: dict[str, Callable[..., Tensor]] = {"generate": model.generate}
    if whose == "lorakit":
        alone = partial(lorakit.generate, model, disable_compile=True)
        ways = {"captured": partial(lorakit.generate, model), "captured, not compiled": alone, **ways}
    for batch in arguments.batch:
        torch.manual_seed(2)
        ids = torch.randint(0, 128000, (batch, arguments.prompt), device="cuda")
        answers = {}
        for way, run in ways.items():
            answers[way], first = seconds(run, ids, arguments.new)
            whole = statistics.median(seconds(run, ids, arguments.new)[1] for _ in range(3))
            seconds(run, ids, 1)
            prompt = statistics.median(seconds(run, ids, 1)[1] for _ in range(3))
            print(json.dumps({
                "whose": whose, "way": way, "layers": arguments.layers, "batch": batch, "first_s": round(first, 2),
                "tok_s": round(arguments.new / whole, 1), "tok_s_all_rows": round(batch * arguments.new / whole, 1),
                "ms_a_token": round((whole - prompt) / (arguments.new - 1) * 1e3, 3),
            }), flush=True)  # fmt: skip
        if whose == "lorakit":
            print(json.dumps({"batch": batch, **agreement(model, ids, answers)}), flush=True)


def seconds(run: Callable[..., Tensor], ids: Tensor, new: int) -> tuple[Tensor, float]:
    torch.cuda.synchronize()
    begun = time.perf_counter()
    answer = run(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
    torch.cuda.synchronize()
    return answer, time.perf_counter() - begun


@torch.no_grad()
def agreement(model: Any, ids: Tensor, answers: dict[str, Tensor]) -> dict[str, Any]:
    """Compare captured tokens with uncaptured ones, and logits with those of one pass over all tokens."""
    settings: dict[str, Any] = {
        "max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False, "pad_token_id": 0, "output_logits": True,
        "return_dict_in_generate": True,
    }  # fmt: skip
    first = lorakit.generate(model, ids, **settings)
    logits = torch.stack(first.logits, 1).float()
    whole = model(first.sequences[:, :-1]).logits[:, -16:].float()
    plain = torch.stack(model.generate(ids, **settings).logits, 1).float()
    same = (answers["captured"] == answers["generate"]).all(0).long()
    return {
        "equal_tokens": int(same[ids.shape[1] :].cumprod(0).sum()),
        "captured_against_one_pass": round(_error(logits, whole), 4),
        "uncaptured_against_one_pass_first": round(_error(plain[:, :2], whole[:, :2]), 4),
        "captured_against_uncaptured_first": round(_error(logits[:, :2], plain[:, :2]), 4),
    }


def profile(arguments: argparse.Namespace) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    model = adapted(ours, arguments.layers)
    for batch in arguments.batch:
        ids = torch.randint(0, 128000, (batch, arguments.prompt), device="cuda")
        settings: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        lorakit.generate(model, ids, max_new_tokens=20, **settings)
        seen = []
        for new in (4, 20):
            with profiled(activities=[ProfilerActivity.CUDA]) as record:
                lorakit.generate(model, ids, max_new_tokens=new, **settings)
                torch.cuda.synchronize()
            of: Counter[str] = Counter()
            times: Counter[str] = Counter()
            for event in record.events():
                if event.device_type.name == "CUDA":
                    of[event.name] += 1
                    times[event.name] += event.device_time
            seen.append((of, times))
        rows = sorted(
            (
                ((seen[1][1][name] - seen[0][1][name]) / 16e3, (seen[1][0][name] - seen[0][0][name]) / 16, name[:110])
                for name in seen[1][0]
            ),
            reverse=True,
        )
        print(
            json.dumps(
                {"batch": batch, "kernels_a_token": sum(row[1] for row in rows), "ms_busy": sum(row[0] for row in rows)}
            )
        )
        for ms, often, name in rows[:40]:
            print(f"  {ms:8.4f} ms {often:7.1f} times {ms / max(often, 1e-9) * 1e3:8.2f} us  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["products", "tokens", "profile"])
    for name, default in (("layers", 32), ("prompt", 128), ("new", 64), ("rank", 16), ("slots", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--define", nargs="+", default=[], help="of the kernels' sources, such as BLOCKS=2")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--only", default="lorakit,peft")
    arguments = parser.parse_args()
    # what is not captured or compiled is said there
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lorakit").setLevel(logging.INFO)
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__}))
    with torch.no_grad():
        {"products": products, "tokens": tokens, "profile": profile}[arguments.what](arguments)


if __name__ == "__main__":
    main()
