"""Tokens recorded as operations, with what stands between products compiled, against the model's own `generate`."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import lorakit
from helpers import make_llama, randomize
from lorakit.builtin.fourbit import NF4
from lorakit.generating import pieces
from lorakit.generating.cache_state import CacheState
from lorakit.generating.decoding import Decoding
from lorakit.generating.fusing import fused
from lorakit.generating.levels import levels
from lorakit.generating.one_query import attended
from lorakit.generating.places import taken
from lorakit.generating.recording import record
from lorakit.generating.together import together
from lorakit.generating.token import TOKENS, Token

# widths that are no whole blocks of four-bit weights, which are dequantized by torch's operations then
SIZES: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 512,
}  # fmt: skip
WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: make_llama(**SIZES),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, sliding_window=6, layer_types=WINDOWS)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=48, n_layer=3, n_head=4, n_positions=512)),
}


def as_it_is(module: fx.GraphModule, inputs: Sequence[Tensor]) -> Any:
    """Compile nothing."""
    return module


class Again:
    """In the place of a CUDA graph: computes anew, into the memory of before. Python's own counts stay as they are."""

    def __init__(self) -> None:
        self.fused = 0

    def __call__(self, run: Callable[[], Any], inputs: Mapping[Any, Tensor], cache: Any, fuse: Any = None) -> Token:
        assert fuse is not None, "it was not fused"
        before = CacheState.of(cache)
        run()
        counters = before.counted(cache)
        before.restore()

        def change() -> None:
            for name in TOKENS & inputs.keys():
                inputs[name].add_(1).remainder_(100)

        run, kept = fuse(run, change, before.restore)
        outputs, held = run(), dict[Any, Tensor]()
        before.restore()
        taken(outputs, (), held)
        self.fused += 1

        class Graph:
            def replay(self) -> None:
                new: dict[Any, Tensor] = {}
                taken(run(), (), new)
                for place, value in new.items():
                    held[place].copy_(value)

        graph: Any = Graph()
        return Token(graph, inputs, outputs, counters, kept)


def answered(model: Any, ids: Tensor, compile: Any, **settings: Any) -> tuple[Tensor, Tensor]:
    """Return what the model answers on its own, and by fused tokens."""
    said: list[str] = []
    again = Again()
    decoding = Decoding(said.append, again, "cpu", compile)
    settings = {"max_new_tokens": 10, "pad_token_id": 0, "do_sample": False, **settings}
    settings |= {"cache_implementation": "static", "disable_compile": True}
    torch.manual_seed(3)
    own = model.generate(ids, **settings)
    torch.manual_seed(3)
    with decoding.standing_before(model):
        fast = model.generate(ids, **settings)
    assert not said and again.fused
    return own, fast


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_COMPILED", OrderedDict())


def adapted(name: str) -> Any:
    torch.manual_seed(0)
    quantized = "" if name == "gpt2" else " quant nf4 double"
    model: Any = lorakit.apply(f"adapt @linear rank 4{quantized}", MODELS[name]()).eval()
    randomize(model)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_fused_tokens_are_those_of_generate(name: str) -> None:
    model = adapted(name)
    ids = torch.randint(1, 128, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    for settings in ({}, {"attention_mask": mask}, {"do_sample": True, "temperature": 0.7}):
        own, fast = answered(model, ids, as_it_is, **settings)
        assert torch.equal(own, fast)


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor compiles by g++ here")
def test_compiled_pieces_write_where_the_function_writes() -> None:
    torch.manual_seed(0)
    x, weight, place = torch.randn(1, 1, 16), torch.randn(16, 32), torch.tensor([2])
    keys, before = torch.randn(1, 2, 6, 8), torch.empty(0)

    def run() -> list[Tensor]:
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        query, key = (normed @ weight).view(1, 1, 4, 8).transpose(1, 2).split(2, 1)
        keys.index_copy_(2, place, key)
        place.add_(1)
        return [torch.nn.functional.scaled_dot_product_attention(query, keys, keys).transpose(1, 2)]

    def restore() -> None:
        keys.copy_(before)
        place.fill_(2)

    before = keys.clone()
    again, _ = fused(run, lambda: None, restore, print, pieces.inductor)
    assert len(pieces._COMPILED) == 2
    x.normal_()
    wanted = [tensor.clone() for tensor in (*run(), keys, place)]
    restore()
    for one, other in zip((*again(), keys, place), wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_layers_that_repeat_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for layers in (3, 7):
        monkeypatch.setattr(pieces, "_COMPILED", OrderedDict())
        model = make_llama(**{**SIZES, "num_hidden_layers": layers}).eval()
        answered(model, torch.arange(1, 9).unsqueeze(0), as_it_is)
        counts.append(len(pieces._COMPILED))
    assert counts[0] == counts[1] > 1


def test_what_is_not_compiled_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(3, 5), torch.randn(5, 5)
    said: list[str] = []

    def refuse(module: fx.GraphModule, inputs: Sequence[Tensor]) -> Any:
        raise RuntimeError("no compiler")

    def run() -> dict[str, Tensor]:
        return {"y": ((x * 2 + 1) @ weight).sigmoid() + x}

    again, _ = fused(run, lambda: None, lambda: None, said.append, refuse)
    x.normal_()
    assert torch.equal(again()["y"], run()["y"])
    assert said == ["generate: a piece of a token is not compiled: RuntimeError: no compiler"] * 2
    monkeypatch.setattr(pieces, "SECONDS", -1.0)
    said.clear()
    assert torch.equal(fused(run, lambda: None, lambda: None, said.append, refuse)[0]()["y"], run()["y"])
    assert len(said) == 1 and "compiling took" in said[0]


def test_memory_that_others_write_to_is_noticed() -> None:
    x, hidden = torch.ones(4), torch.empty(4)
    import ctypes

    def run() -> list[Tensor]:
        # no operation of torch: torch sees memory that nothing writes to
        ctypes.memmove(hidden.data_ptr(), (x * 2).data_ptr(), 16)
        return [hidden + 1]

    with pytest.raises(ValueError, match="not all that it computes are operations of torch"):
        fused(run, lambda: x.add_(1), lambda: None, print, as_it_is)  # type: ignore[arg-type]


def test_constants_of_python_are_kept_for_graphs() -> None:
    x = torch.ones(3)
    again, kept = fused(lambda: [x + torch.tensor([1.0, 2.0, 3.0])], lambda: None, lambda: None, print, as_it_is)
    assert any(isinstance(one, Tensor) and one.tolist() == [1.0, 2.0, 3.0] for one in kept)
    assert again()[0].tolist() == [2.0, 3.0, 4.0]


def test_writes_keep_their_order_with_reads() -> None:
    count, kept = torch.zeros(1), torch.zeros(6)
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))

    def run() -> list[Tensor]:
        first = count + 1
        wide = kept.view(2, 3)
        wide[0].add_(first)
        seen = (kept @ weight).tanh()
        wide.mul_(0.5)
        kept[1:2].copy_(seen[:1] + count)
        count.add_(1)
        own = torch.zeros(6)
        own[2:] = (seen @ weight)[2:]
        return [own + kept, seen]

    state = [tensor.clone() for tensor in (count, kept)]

    def restore() -> None:
        for tensor, value in zip((count, kept), state, strict=True):
            tensor.copy_(value)

    again, _ = fused(run, lambda: None, restore, print, as_it_is)
    for _ in range(3):
        wanted = [tensor.clone() for tensor in (*run(), count, kept)]
        restore()
        assert all(map(torch.equal, (*again(), count, kept), wanted))
        state = [tensor.clone() for tensor in (count, kept)]


def test_memory_under_two_names_is_refused() -> None:
    whole = torch.zeros(4)
    part = whole[:2]

    def run() -> list[Tensor]:
        part.add_(1)
        return [whole + part.sum()]

    with pytest.raises(ValueError, match="several tensors share"):
        record(run)


def test_products_of_one_input_are_one_launch() -> None:
    torch.manual_seed(0)
    stored = [NF4(double=True).quantize(torch.randn(24, 128)).tensors for _ in range(3)]
    x = torch.randn(1, 2, 128)

    def product(rows: Tensor, index: int) -> Tensor:
        held = ([stored[index][name]] for name in ("packed", "absmax", "nested_absmax", "nested_offset"))
        result: Tensor = torch.ops.lorakit.few_rows_4bit(rows, *held, [None], [None], [None], [0.0], [24], 64, "nf4")[0]
        return result

    def run() -> list[Tensor]:
        normed = x * 2 + 1
        first, second = product(normed.view(2, 128), 0).relu(), product(normed.view(2, 128), 1)
        return [first * second, product(x.view(2, 128), 2)]

    recording = record(run)
    launches = [
        one for level, operations in levels(recording).items() if level % 2 for one in together(operations, recording)
    ]
    assert sorted(len(one.results) for one in launches) == [1, 2]
    again, _ = fused(run, lambda: None, lambda: None, print, as_it_is)
    x.normal_()
    assert all(map(torch.equal, again(), run()))


@pytest.mark.parametrize("shared", [1, 2])
@pytest.mark.parametrize("masked", ["", "bool", "float"])
def test_attention_of_one_query_is_torchs(masked: str, shared: int) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 1, 8), torch.randn(2, 4 // shared, 5, 8), torch.randn(2, 4 // shared, 5, 8)
    mask: Tensor | None = None
    if masked:
        mask = torch.rand(2, 1, 1, 5) > 0.3
        mask[..., 0] = True
        mask = mask if masked == "bool" else torch.where(mask, 0.0, -1e30)
    settings: dict[str, Any] = {"attn_mask": mask, "scale": 0.3, "enable_gqa": shared > 1}
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, **settings)
    assert torch.allclose(attended(query, key, value, **settings), wanted, atol=1e-6)
