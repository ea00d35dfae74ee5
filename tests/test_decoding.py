"""What decoding on a CUDA device stands on, where there is none: the op's other road, and caches that go back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, StaticCache

import lorakit
from helpers import make_llama
from lorakit.builtin.fourbit import NF4
from lorakit.generating import cache_state
from lorakit.generating.cache_state import CacheState
from lorakit.layers.kernels.few_rows import fits
from lorakit.layers.kernels.few_rows_cuda import MOST_ROWS, grid, pairs
from lorakit.layers.kernels.fourbit import levels
from lorakit.values import Storage

WINDOW = 6
NAMES = ("packed", "absmax", "nested_absmax", "nested_offset")


def gemma() -> Any:
    torch.manual_seed(0)
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention"],
        )
    )  # fmt: skip


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("rank", [0, 4])
def test_few_rows_are_the_product_with_the_dequantized_weight(double: bool, rank: int) -> None:
    torch.manual_seed(0)
    quantizer = NF4(double=double)
    stored = quantizer.quantize(torch.randn(24, 128))
    x, bias, lora_A, lora_B = torch.randn(3, 128), torch.randn(24), torch.randn(rank, 128), torch.randn(24, rank)
    held = [[stored.tensors[name]] * 2 if name in stored.tensors else [] for name in NAMES]
    factors = [bias, None], [lora_A, None], [lora_B, None]
    arguments = (x, *held, *factors, [0.5, 0.0], [24, 24], 64, "nf4")
    weight = quantizer.dequantize(stored)
    both, alone = torch.ops.lorakit.few_rows_4bit(*arguments)
    assert torch.allclose(both, functional.linear(x, weight + 0.5 * lora_B @ lora_A, bias), atol=1e-4)
    assert torch.allclose(alone, functional.linear(x, weight), atol=1e-4)
    torch.library.opcheck(torch.ops.lorakit.few_rows_4bit.default, arguments)


def test_both_levels_of_a_byte_lie_as_the_kernel_reads_them() -> None:
    held = pairs("nf4", torch.bfloat16, torch.device("cpu")).view(torch.bfloat16).view(256, 2).float()
    of = levels("nf4", torch.device("cpu")).bfloat16().float()
    assert all(held[byte].tolist() == [of[byte >> 4].item(), of[byte & 15].item()] for byte in range(256))


@pytest.mark.parametrize("rows", range(1, 65))
def test_blocks_are_dealt_out_so_that_each_has_outputs_and_inputs(rows: int) -> None:
    for heights, ranks, n_in in (((4096,), (16,), 4096), ((520, 8), (0, 40), 14336), ((24,), (64,), 64)):
        for slots in (1, 264, 396):
            how = grid(rows, heights, ranks, n_in, slots)
            assert rows <= 8 * how.row_tiles <= MOST_ROWS and how.tiles >= len(heights)
            assert 0 < how.main <= how.tiles * how.splits
            groups = -(-n_in // 256)
            # the last split has inputs too
            assert (how.splits - 1) * -(-groups // how.splits) < groups


def test_weights_on_a_cpu_are_not_for_the_kernel() -> None:
    assert not fits(Storage(NF4(), (8, 128), torch.bfloat16, torch.device("cpu")))


@pytest.mark.parametrize("make", [make_llama, gemma])
@pytest.mark.parametrize("prompt", [3, 9])
@torch.no_grad()
def test_a_cache_goes_back_to_before_a_token(make: Any, prompt: int) -> None:
    model = make().eval()
    cache = StaticCache(model.config, max_cache_len=16)
    assert not cache_state.is_static(None)
    model(torch.arange(prompt).unsqueeze(0), past_key_values=cache)
    assert cache_state.is_static(cache) and cache_state.length(cache) == 16
    before, form = CacheState.of(cache), cache_state.form(cache)
    first = model(torch.tensor([[5]]), past_key_values=cache).logits
    assert not before.moved(cache)
    # windows are counted in Python
    assert [step for _, step in before.counted(cache)] == [1] * sum(cache.is_sliding)
    before.restore()
    assert cache_state.form(cache) == form and not before.counted(cache)
    assert torch.equal(model(torch.tensor([[5]]), past_key_values=cache).logits, first)
    cache.reorder_cache(torch.LongTensor([0]))
    assert before.moved(cache)


@torch.no_grad()
def test_a_full_window_is_another_form() -> None:
    model = gemma().eval()
    cache = StaticCache(model.config, max_cache_len=16)
    forms = []
    for token in range(WINDOW + 3):
        model(torch.tensor([[token]]), past_key_values=cache)
        forms.append(cache_state.form(cache))
    assert [forms.index(form) for form in forms] == [0] * (WINDOW - 1) + [WINDOW - 1] * 4


def test_without_a_device_generate_is_the_models_own() -> None:
    model: Any = lorakit.apply("adapt @linear rank 4", make_llama()).eval()
    ids = torch.arange(1, 9).unsqueeze(0)
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    assert torch.equal(lorakit.generate(model, ids, **settings), model.generate(ids, **settings))
