"""The figures that the papers and the README state, in the plan and on the model that really holds them."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

import lorakit
from helpers import make_llama
from lorakit.data.tokens import IGNORED
from lorakit.huggingface.record_attention import attention_by_record
from lorakit.trainers.condensed import WAYS, Condense, one_row


class One(nn.Module):
    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_features, out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


@pytest.mark.parametrize(("rank", "added", "percent"), [(16, 98_304, 1.17), (64, 393_216, 4.69)])
def test_added_parameters_of_4096_by_2048(rank: int, added: int, percent: float) -> None:
    model = One(2048, 4096)
    plan = lorakit.plan(f"adapt proj rank {rank}", model)
    assert plan.added == plan.trainable == added
    assert round(100 * plan.added / plan.model_parameters, 2) == percent
    adapted = lorakit.apply(plan, model)
    held = lorakit.summary(adapted)
    assert held.added_parameters == held.trainable_parameters == added
    assert sum(value.numel() for value in adapted.parameters() if value.requires_grad) == added


@pytest.mark.parametrize(
    ("quant", "limit"), [("nf4 double", 4.13), ("fp4 double", 4.13), ("nf4", 4.5), ("int8", 8.016)]
)
def test_bits_per_weight_on_the_tensors_held(quant: str, limit: float) -> None:
    model = One(2048, 4096).to(torch.bfloat16)
    plan = lorakit.plan(f"adapt proj rank 16 quant {quant}", model)
    adapted = lorakit.apply(plan, model)
    base = adapted.get_submodule("proj.base_layer")
    held = sum(tensor.numel() * tensor.element_size() for tensor in base.parameters())
    bits = 8 * held / (2048 * 4096)
    assert limit - 0.02 < bits <= limit
    # the forecast is the same arithmetic, made before anything was allocated
    assert plan.entries[0].bytes.weight_after == held
    assert lorakit.summary(adapted).modules[0].bits_per_weight == bits


def test_forecast_of_bytes_is_what_the_model_holds() -> None:
    model = One(96, 160).to(torch.bfloat16)
    plan = lorakit.plan("adapt proj rank 8 quant nf4 double\noptimizer adamw lr 1e-3", model)
    adapted = lorakit.apply(plan, model)
    optimizer = lorakit.optimizer(adapted)
    adapted(torch.randn(2, 160, dtype=torch.bfloat16)).sum().backward()
    trained = [value for value in adapted.parameters() if value.requires_grad]
    assert plan.memory.gradients == sum(value.grad.nbytes for value in trained if value.grad is not None)
    optimizer.step()
    state = [tensor for slots in optimizer.state.values() for tensor in slots.values() if torch.is_tensor(tensor)]
    assert plan.memory.optimizer == sum(tensor.numel() * tensor.element_size() for tensor in state)


@pytest.mark.parametrize("quant", ["quant nf4 double", ""])
def test_forecast_of_activations_is_what_autograd_keeps(quant: str) -> None:
    model = make_llama(hidden_size=128, intermediate_size=384, vocab_size=2000, num_hidden_layers=3).to(torch.bfloat16)
    batch, tokens = 2, 64
    plan = lorakit.plan(f"adapt @linear rank 8 {quant}", model, batch=batch, tokens=tokens)
    lorakit.apply(plan, model).train()
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(0, 2000, (batch, tokens))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(ids, labels=ids)
    assert abs(plan.memory.activations / sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) - 1) < 0.03


@pytest.mark.parametrize("way", WAYS)
def test_forecast_of_activations_is_for_tokens_that_are_all_learned(way: Condense) -> None:
    model = make_llama(hidden_size=128, intermediate_size=384, vocab_size=2000, num_hidden_layers=3).to(torch.bfloat16)
    batch, tokens = 2, 64
    plan = lorakit.plan("adapt @linear rank 8", model, batch=batch, tokens=tokens)
    lorakit.apply(plan, model).train()
    ids = torch.randint(0, 2000, (batch, tokens))
    kept = []
    for prompt in (0, tokens // 2):
        saved, labels = Saved(model), ids.clone()
        labels[:, :prompt] = IGNORED
        with attention_by_record(), torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda kept: kept[0]):
            model(**way({"input_ids": ids, "labels": labels}))
        kept.append(saved.peak / plan.memory.activations)
    # each record of one row, on a CPU, has queries, keys and values of its own
    assert kept[0] < 1.25 if way is one_row else abs(kept[0] - 1) < 0.03
    assert kept[1] < kept[0] - 0.1


class Saved:
    """Counts the bytes of the tensors that autograd keeps at the same time, a storage once, without a model's own."""

    def __init__(self, model: nn.Module) -> None:
        self._own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
        self._held: dict[int, int] = {}
        self._bytes = self.peak = 0

    def pack(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        kept = Kept([tensor])
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if key not in self._own:
            if not self._held.setdefault(key, 0):
                self._bytes += size
            self._held[key] += 1
            self.peak = max(self.peak, self._bytes)
            weakref.finalize(kept, self._free, key, size)
        return kept

    def _free(self, key: int, size: int) -> None:
        self._held[key] -= 1
        self._bytes -= 0 if self._held[key] else size


class Kept(list[torch.Tensor]):
    """A list that may be watched."""


@pytest.mark.parametrize("vocabulary", [200, 2000])
@pytest.mark.parametrize("layers", [4, 12])
@pytest.mark.parametrize("spec", ["adapt @linear rank 8", "adapt q_proj,v_proj rank 8 quant nf4 double"])
def test_forecast_with_recomputed_blocks_is_the_most_that_autograd_keeps(
    spec: str, layers: int, vocabulary: int
) -> None:
    model = make_llama(hidden_size=128, intermediate_size=384, vocab_size=vocabulary, num_hidden_layers=layers).to(
        torch.bfloat16
    )
    batch, tokens = 2, 64
    plan = lorakit.plan(spec, model, batch=batch, tokens=tokens, recompute=True)
    assert (
        plan.memory.recompute
        and plan.memory.activations < lorakit.plan(spec, model, batch=batch, tokens=tokens).memory.activations
    )
    lorakit.apply(plan, model).train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    saved = Saved(model)
    ids = torch.randint(0, vocabulary, (batch, tokens))
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda kept: kept[0]):
        model(ids, labels=ids).loss.backward()
    assert abs(plan.memory.activations / saved.peak - 1) < 0.15
