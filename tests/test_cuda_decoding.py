"""Decoding on CUDA devices: products of few rows, and tokens as graphs, against one operation after another."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

import lorakit
from helpers import make_llama, randomize
from lorakit.builtin.fourbit import FP4, NF4
from lorakit.layers.kernels.few_rows import fits
from lorakit.layers.kernels.fourbit import dequantize_4bit
from lorakit.values import Storage

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SIZES = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 512, "max_position_embeddings": 2048}
SPEC = "adapt @linear rank 8 quant nf4 double"


def error(result: torch.Tensor, exact: torch.Tensor) -> float:
    return float((result.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 16, 17, 32, 33, 64])
@pytest.mark.parametrize(
    "quantizer", [NF4(double=True), NF4(), FP4(blocksize=128, double=True), NF4(blocksize=4096)], ids=str
)
def test_few_rows_are_multiplied_as_exactly_as_by_dequantizing(quantizer: Any, rows: int) -> None:
    generator = torch.Generator("cuda").manual_seed(rows)
    # the last tile of outputs and the last group of inputs are not full
    shape = (200, 576)
    for dtype, wide in ((torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)):
        draw: dict[str, Any] = {"device": "cuda", "generator": generator}
        weight = torch.randn(shape, **draw).to(dtype) * 0.02
        x = torch.randn(rows, shape[1], **draw).to(dtype)
        bias = torch.randn(shape[0], **draw).to(dtype)
        lora_A, lora_B = torch.randn(16, shape[1], **draw).to(wide), torch.randn(shape[0], 16, **draw).to(wide)
        stored = quantizer.quantize(weight).tensors
        exact = dequantize_4bit(stored, quantizer.blocksize, quantizer.name, shape, torch.float32).double()
        exact = x.double() @ exact.t() + bias.double() + 0.1 * (x.double() @ lora_A.double().t()) @ lora_B.double().t()
        nested = [[stored[name]] if name in stored else [] for name in ("nested_absmax", "nested_offset")]
        results = [
            torch.ops.lorakit.few_rows_4bit(
                x, [stored["packed"]], [stored["absmax"]], *nested, [bias], [lora_A], [lora_B], [0.1], [shape[0]],
                quantizer.blocksize, quantizer.name,
            )[0]
            for _ in range(2)
        ]  # fmt: skip
        assert torch.equal(*results)
        assert results[0].dtype == dtype and error(results[0], exact) < (4e-3 if dtype == torch.bfloat16 else 6e-4)


@pytest.mark.parametrize("rows", [1, 8, 40])
def test_weights_of_one_input_are_multiplied_as_they_are_alone(rows: int) -> None:
    heights, ranks = (520, 40, 16, 304, 8), (16, 0, 5, 40, 16)
    x = torch.randn(rows, 2048, device="cuda", dtype=torch.bfloat16)
    stored = [
        NF4(double=True).quantize(torch.randn(height, 2048, device="cuda").bfloat16()).tensors for height in heights
    ]
    names = ("packed", "absmax", "nested_absmax", "nested_offset")
    drawn: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    lora_A = [torch.randn(rank, 2048, **drawn) if rank else None for rank in ranks]
    lora_B = [torch.randn(height, rank, **drawn) if rank else None for height, rank in zip(heights, ranks, strict=True)]

    def product(members: range) -> list[torch.Tensor]:
        held = [[stored[index][name] for index in members] for name in names]
        factors = [[every[index] for index in members] for every in ([None] * 5, lora_A, lora_B)]
        result: list[torch.Tensor] = torch.ops.lorakit.few_rows_4bit(
            x, *held, *factors, [2.0] * len(members), [heights[index] for index in members], 64, "nf4"
        )
        return result

    every = product(range(5))
    alone = [product(range(index, index + 1))[0] for index in range(5)]
    assert [one.shape for one in every] == [one.shape for one in alone]
    for one, other in zip(every, alone, strict=True):
        # more rows are added up in parts, whose number follows from all heights
        assert torch.equal(one, other) if rows <= 8 else error(one, other.double()) < 4e-3


def test_the_kernel_says_which_weights_it_reads() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    assert fits(Storage(NF4(), (8, 128), torch.bfloat16, device))
    assert not fits(Storage(NF4(), (8, 100), torch.bfloat16, device))
    assert not fits(Storage(NF4(blocksize=32), (8, 128), torch.bfloat16, device))
    assert not fits(Storage(NF4(), (8, 128), torch.bfloat16, torch.device("cpu")))


@pytest.fixture(scope="module")
def model() -> Any:
    made: Any = lorakit.apply(SPEC, make_llama(**SIZES).to("cuda", torch.float16)).eval()
    # far enough from the model alone that its tokens are others
    randomize(made)
    return made


def logits(generate: Any, ids: torch.Tensor, **settings: Any) -> Any:
    torch.manual_seed(0)
    return generate(
        ids, max_new_tokens=12, pad_token_id=0, return_dict_in_generate=True, output_logits=True, **settings
    )


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "temperature": 0.7}, {"disable_compile": True}], ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_captured_tokens_are_those_of_generate(
    model: Any, padded: bool, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ids = torch.randint(1, 512, (2, 40), device="cuda", generator=torch.Generator("cuda").manual_seed(4))
    if padded:
        ids[0, :7] = 0
        settings = {**settings, "attention_mask": (ids != 0).long()}
    with caplog.at_level(logging.INFO, logger="lorakit"):
        captured = logits(lambda *args, **kw: lorakit.generate(model, *args, **kw), ids, **settings)
        again = logits(lambda *args, **kw: lorakit.generate(model, *args, **kw), ids, **settings)
    assert "generate:" not in caplog.text
    static = logits(model.generate, ids, **{**settings, "cache_implementation": "static", "disable_compile": True})
    assert torch.equal(captured.sequences, again.sequences) and torch.equal(captured.sequences, static.sequences)
    for one, other in zip(captured.logits, static.logits, strict=True):
        assert error(one, other.double()) < 1e-2


def test_graphs_follow_adapters_that_are_switched_off_and_weights_that_change(model: Any) -> None:
    ids = torch.randint(1, 512, (1, 30), device="cuda", generator=torch.Generator("cuda").manual_seed(5))
    settings = {"max_new_tokens": 8, "pad_token_id": 0, "do_sample": False}
    first = lorakit.generate(model, ids, **settings)
    with lorakit.adapters(model).disabled():
        off = lorakit.generate(model, ids, **settings)
        assert torch.equal(off, model.generate(ids, cache_implementation="static", disable_compile=True, **settings))
    assert torch.equal(lorakit.generate(model, ids, **settings), first)
    assert not torch.equal(first, off)
    # nothing is left on the model
    assert not {"forward", "prepare_inputs_for_generation", "_prepare_static_cache"} & set(vars(model))


class Heard:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.tokens.append(-1)


def test_streamers_hear_each_token(model: Any) -> None:
    ids = torch.randint(1, 512, (1, 20), device="cuda")
    heard = Heard()
    answer = lorakit.generate(model, ids, max_new_tokens=6, pad_token_id=0, do_sample=False, streamer=heard)
    assert heard.tokens == [*answer[0].tolist(), -1]
