"""Blocks compiled in place: which products are put together, what is kept, and that gradients are those of eager code.

What Inductor would make of the graphs runs as it is: the functions between are the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import lorakit
from architectures import ARCHITECTURES
from helpers import make_llama
from lorakit.compiling import blocks
from lorakit.compiling.backend import Backend, _say_once
from lorakit.compiling.loss import _compiled
from lorakit.compiling.partition import Choice, Partitioner, chosen
from lorakit.stepping.head import HeadByChunks
from lorakit.stepping.losses import OwnLoss

SPEC = "adapt @linear rank 4 alpha 6 dtype fp32 quant nf4 double"
MERGED = torch.ops.lorakit.merged_4bit.default
PRODUCT = torch.ops.lorakit.product.default


class Seen:
    """Compiles as the blocks' backend does, but for the last stage, and keeps the graphs."""

    def __init__(self, kept: float = 1.0) -> None:
        self.forward: list[fx.Graph] = []
        self.backward: list[fx.Graph] = []
        self.backend = Backend(kept, self._inner)
        self._kept = kept

    def _inner(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        from functorch.compile import make_boxed_func
        from torch._dynamo.backends.common import aot_autograd

        def keeping(graphs: list[fx.Graph]) -> Callable[..., Any]:
            def compiler(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
                graphs.append(module.graph)
                return make_boxed_func(module.forward)

            return compiler

        return aot_autograd(
            fw_compiler=keeping(self.forward),
            bw_compiler=keeping(self.backward),
            partition_fn=Partitioner(self._kept),
        )(module, inputs)


def calls(graph: fx.Graph, target: Any) -> int:
    return sum(node.target is target for node in graph.nodes)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[float, Seen]:
    """Have blocks compiled without Inductor, and return what is seen of it by the share that is kept."""
    torch._dynamo.reset()
    made: dict[float, Seen] = {}

    def backend(kept: float) -> Backend:
        return made.setdefault(kept, Seen(kept)).backend

    monkeypatch.setattr(blocks, "backend", backend)
    return made


def learned(model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Return the gradients of a batch's loss, and the loss."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return {"loss": loss.detach()} | {
        name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None
    }


def filled(model: Any) -> Any:
    """Return a model whose adapters change something."""
    generator = torch.Generator().manual_seed(1)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return model.train()


def assert_near(found: dict[str, Tensor], wanted: dict[str, Tensor], most: float = 1e-5) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float((found[name] - value).norm()) <= most * float(value.norm()) + 1e-9, name


def batch_of(rows: int = 2, length: int = 12, vocabulary: int = 128) -> dict[str, Any]:
    ids = torch.randint(1, vocabulary, (rows, length), generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids, "labels": ids, "use_cache": False}


@pytest.mark.parametrize("kept", [0.0, 0.35, 1.0])
def test_gradients_are_those_of_eager_code_whatever_is_kept(kept: float, seen: dict[float, Seen]) -> None:
    model = filled(lorakit.apply(SPEC, make_llama()))
    wanted = learned(model, batch_of())
    assert lorakit.compile_blocks(model, kept=kept) == 2
    assert_near(learned(model, batch_of()), wanted)
    graphs = seen[kept]
    # the first block, whose input needs no gradient, and all others; q, k, v and gate, up are one product each
    assert [calls(graph, MERGED) for graph in graphs.forward] == [4, 4]
    assert all(not calls(graph, PRODUCT) for graph in graphs.forward)


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gpt2", "gpt_neox", "opt", "mixtral"])
def test_blocks_of_any_architecture(name: str, seen: dict[float, Seen]) -> None:
    architecture = ARCHITECTURES[name]
    model = filled(lorakit.apply(SPEC, architecture.build()))
    inputs = architecture.inputs() | {"use_cache": False}
    wanted = learned(model, inputs)
    assert lorakit.compile_blocks(model) > 0
    assert_near(learned(model, inputs), wanted)
    assert sum(calls(graph, MERGED) for graph in seen[1.0].forward) > 0


class Block(nn.Module):
    """One that no library has: three projections of one input with biases, and one of another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(32, 48), nn.Linear(32, 48, bias=False), nn.Linear(32, 32)
        self.last = nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        gated: Tensor = self.last(torch.tanh(self.first(x)) * self.second(x)) + self.third(x)
        return x + gated.sin()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.body:
            x = block(x)
        return x


def net(spec: str = SPEC) -> Any:
    torch.manual_seed(0)
    return filled(lorakit.apply(spec, Net()))


def slopes(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    y = model(x)
    y.square().mean().backward()
    return {"y": y.detach()} | {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        "adapt @linear rank 4 dtype fp32 quant nf4",
        "adapt @linear rank 4 dtype fp32 quant fp4(blocksize=32) double",
        "adapt first,last rank 4 dtype fp32 quant nf4 double\nquantize @linear nf4 double",
        "adapt @linear rank 4 dtype fp32 scaling rslora quant nf4 double",
    ],
)
def test_a_model_that_no_library_has(spec: str, seen: dict[float, Seen]) -> None:
    model = net(spec)
    x = torch.randn(5, 7, 32)
    wanted = slopes(model, x)
    assert lorakit.compile_blocks(model) == 3
    assert_near(slopes(model, x), wanted)
    # what reads x is one product, and `last` another
    assert [calls(graph, MERGED) for graph in seen[1.0].forward][:1] == [2]


def test_two_adapters_of_one_layer_are_in_one_weight(seen: dict[float, Seen]) -> None:
    model = filled(lorakit.apply("adapt first rank 3 dtype fp32", net(), name="second"))
    lorakit.adapters(model).use({"default": 1.0, "second": 0.5})
    x = torch.randn(4, 32)
    wanted = slopes(model, x)
    lorakit.compile_blocks(model)
    assert_near(slopes(model, x), wanted)


def test_what_cannot_be_put_together_is_multiplied_apart(seen: dict[float, Seen]) -> None:
    model = net("adapt @linear rank 4 dtype fp32 quant int8")
    x = torch.randn(5, 32)
    wanted = slopes(model, x)
    lorakit.compile_blocks(model)
    assert_near(slopes(model, x), wanted)
    assert [calls(graph, MERGED) for graph in seen[1.0].forward] == [0, 0]
    # what they give is kept as that of others is
    assert not calls(seen[1.0].backward[0], PRODUCT)
    lorakit.compile_blocks(model, kept=0.0)
    assert_near(slopes(model, x), wanted)
    assert calls(seen[0.0].backward[0], PRODUCT)


def test_dropout_of_adapters_stays(seen: dict[float, Seen]) -> None:
    model = net("adapt @linear rank 4 dropout 0.5 dtype fp32 quant nf4 double")
    lorakit.compile_blocks(model)
    x = torch.randn(5, 32)
    assert not torch.equal(slopes(model, x)["y"], slopes(model, x)["y"])


def test_less_is_kept_and_more_computed_again(seen: dict[float, Seen]) -> None:
    counts, sizes = {}, {}
    for kept in (0.0, 0.35, 1.0):
        model = filled(lorakit.apply(SPEC, make_llama(hidden_size=128)))
        lorakit.compile_blocks(model, kept=kept)
        batch = batch_of(length=32)
        size = 0
        learned(model, batch)
        stay = {one.untyped_storage()._cdata for one in model.parameters()}

        def keep(value: Tensor, stay: set[int] = stay) -> Tensor:
            nonlocal size
            size += value.nbytes * (value.untyped_storage()._cdata not in stay)
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            model(**batch)
        sizes[kept] = size
        counts[kept] = calls(seen[kept].backward[-1], torch.ops.aten.mm.default)
    assert sizes[0.0] < sizes[0.35] < sizes[1.0]
    # q, k, v; out of attention; gate and up: the last product of a block is not computed again
    assert counts[0.0] == counts[1.0] + 3 and counts[1.0] < counts[0.35] < counts[0.0]


def test_what_pays_most_a_byte_is_kept_first_and_of_equals_the_smaller() -> None:
    node: Any = None
    cheap, large, small = Choice(node, 10, 10.0), Choice(node, 40, 400.0), Choice(node, 20, 200.0)
    assert chosen([cheap, large, small], 0.0) == []
    assert chosen([cheap, large, small], 0.35) == [small]
    assert chosen([cheap, large, small], 0.86) == [small, large]
    assert chosen([cheap, large, small], 1.0) == [small, large, cheap]


def test_blocks_that_a_plan_or_a_trainer_has_computed_again_keep_what_enters_them(seen: dict[float, Seen]) -> None:
    model = filled(lorakit.apply(SPEC, make_llama()))
    wanted = learned(model, batch_of())
    model.model.layers[0].gradient_checkpointing = True
    model.model.layers[0]._gradient_checkpointing_func = torch.utils.checkpoint.checkpoint
    lorakit.compile_blocks(model)
    assert_near(learned(model, batch_of()), wanted)
    assert set(seen) == {0.0, 1.0} and len(seen[0.0].forward) == len(seen[1.0].forward) == 1
    # one that is switched on later, as Trainer does
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_near(learned(model, batch_of()), wanted)
    assert len(seen[1.0].forward) == 1 and len(seen[0.0].forward) == 2
    assert all(layer.gradient_checkpointing for layer in model.model.layers)


def test_a_block_that_does_not_learn_runs_as_ever(seen: dict[float, Seen]) -> None:
    model = filled(lorakit.apply(SPEC, make_llama()))
    lorakit.compile_blocks(model)
    ids = batch_of()["input_ids"]
    model.eval()
    assert model.generate(ids, max_new_tokens=3, pad_token_id=0).shape[1] == ids.shape[1] + 3
    with torch.no_grad():
        model.train()(ids)
    assert not seen[1.0].forward


def test_a_compiler_that_fails_is_said_and_the_block_computes(
    seen: dict[float, Seen], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        raise RuntimeError("no compiler of C++")

    monkeypatch.setattr(blocks, "backend", lambda kept: Backend(kept, fail))
    _say_once.cache_clear()
    model = net()
    x = torch.randn(5, 32)
    wanted = slopes(model, x)
    lorakit.compile_blocks(model)
    assert_near(slopes(model, x), wanted)
    assert [one.message for one in caplog.records if one.name == "lorakit"] == [
        "a block is not compiled, and computes one operation after the other: RuntimeError: no compiler of C++"
    ]


def test_the_loss_by_chunks_is_compiled_with_the_blocks(seen: dict[float, Seen]) -> None:
    _compiled.cache_clear()
    model = filled(lorakit.apply(SPEC, make_llama()))
    learning = OwnLoss(model)
    head = HeadByChunks(model, 8)
    object.__setattr__(learning, "head", head)

    def step() -> dict[str, Tensor]:
        model.zero_grad()
        loss = learning.loss(model, batch_of())
        loss.backward()
        return {"loss": loss.detach()} | {
            name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None
        }

    wanted = step()
    lorakit.compile_blocks(model)
    assert_near(step(), wanted)
    softmax = torch.ops.aten._log_softmax.default
    assert [calls(graph, softmax) for graph in seen[1.0].forward].count(1) == 1
    assert "_loss_function" not in vars(model)


def test_refusals_say_what_to_do() -> None:
    alone: Any = lorakit.apply("adapt 0 rank 4", nn.Sequential(nn.Linear(32, 32)))
    with pytest.raises(lorakit.ModelError, match=r"no adapted blocks.*torch\.compile"):
        lorakit.compile_blocks(alone[0])
    with pytest.raises(lorakit.ModelError, match="on a CPU"):
        lorakit.compile_blocks(net(), send=True)


def test_compiled_blocks_are_not_sharded(tmp_path: Path) -> None:
    model = net()
    lorakit.compile_blocks(model)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        with pytest.raises(lorakit.ModelError, match="compiled by `compile_blocks`"):
            lorakit.shard(model)
    finally:
        torch.distributed.destroy_process_group()


def test_products_are_ops_as_torch_wants_them() -> None:
    model: Any = net()
    layer: Any = model.body[0].first
    quantized: Any = layer.base_layer
    form = quantized._linear.keywords["form"]
    stored = [one.detach() for one in quantized.tensors.values()]
    pairs = [layer.lora_A.detach().requires_grad_(), layer.lora_B.detach().requires_grad_()]
    x = torch.randn(3, 5, 32, requires_grad=True)
    names = ",".join(quantized.tensors)
    arguments = (x, quantized.bias.detach(), stored, pairs, [layer.scaling], names, form)
    torch.library.opcheck(PRODUCT, arguments, test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_static"))
    # adapters that rest
    plain: Any = (x, None, stored, [], [], names, form)
    torch.library.opcheck(PRODUCT, plain, test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_static"))
    flat = [one.detach() for one in pairs]
    torch.library.opcheck(
        MERGED,
        (stored, len(stored), flat, [1.0], 64, "nf4", 32, torch.float32),
        test_utils=("test_schema", "test_faketensor"),
    )
