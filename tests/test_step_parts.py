"""What a step that runs out of memory is made of: what is sent and comes back, what is restored, rows, clipping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorakit.stepping import sending
from lorakit.stepping.batches import halves, rows_of
from lorakit.stepping.before import Before
from lorakit.stepping.sending import Sending
from lorakit.stepping.step import clipped


@pytest.fixture(autouse=True)
def sends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "SMALLEST", 1)


def strided() -> Iterator[Tensor]:
    base = torch.arange(240, dtype=torch.float32).reshape(10, 24)
    yield base
    yield base.t()
    yield base[2:7, 3:9]
    yield base[:, ::3]
    yield base[1].expand(4, 24)
    yield base.reshape(2, 5, 24).permute(2, 0, 1)
    yield torch.tensor(3.0)
    yield torch.arange(7)


@pytest.mark.parametrize("value", strided())
def test_what_is_sent_comes_back_with_its_values_and_its_strides(value: Tensor) -> None:
    back = sending._fetched(Sending()._send(value))
    assert torch.equal(back, value) and back.stride() == value.stride() and back.dtype == value.dtype
    assert back.untyped_storage().data_ptr() != value.untyped_storage().data_ptr()


def test_pinned_memory_that_is_refused_gives_plain_memory_and_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = torch.empty

    def refusing(*arguments: Any, pin_memory: bool = False, **others: Any) -> Tensor:
        if pin_memory:
            raise RuntimeError("CUDA error: OS call failed")
        return plain(*arguments, **others)

    monkeypatch.setattr(torch, "empty", refusing)
    sending._say_plain.cache_clear()
    on_device: Any = SimpleNamespace(is_cuda=True, dtype=torch.float32)
    for _ in range(2):
        sent = Sending()
        assert [sent._host(count, on_device).numel() for count in (8, 16)] == [8, 16] and not sent.pinned
    assert caplog.text.count("no pinned memory (CUDA error: OS call failed); saved tensors go to plain memory") == 1


def test_one_stretch_of_memory_is_sent_once_and_parameters_stay() -> None:
    layer, x = nn.Linear(32, 32), torch.randn(8, 32, requires_grad=True)
    sent = Sending()
    with sent.around(layer):
        (layer(x).sin() + layer(x).cos()).sum().backward()
    # x once for both layers, and what sin and cos read
    assert sent.bytes == 3 * x.nbytes
    assert not sent.held


def test_restoring_goes_back_to_the_very_tensors() -> None:
    layer = nn.BatchNorm1d(3)
    layer(torch.randn(4, 3)).sum().backward()
    gradient, mean = layer.weight.grad, layer.running_mean
    values = [value.clone() for value in (gradient, mean) if value is not None]
    before = Before.of(layer)
    layer(torch.randn(4, 3)).square().sum().backward()
    layer.running_mean = torch.ones(3)
    assert before.buffers_changed()
    before.restore()
    assert layer.weight.grad is gradient and layer.running_mean is mean and not before.buffers_changed()
    assert gradient is not None and mean is not None
    assert torch.equal(gradient, values[0]) and torch.equal(mean, values[1])


def test_rows_that_lie_flat_or_cannot_be_told_apart_are_not_cut() -> None:
    ids = torch.arange(12).reshape(4, 3)
    cases: list[tuple[Any, int]] = [
        ({"input_ids": ids, "labels": ids, "use_cache": False}, 4),
        ({"input_ids": ids, "cu_seq_lens_q": torch.tensor([0, 3, 6, 9])}, 0),
        ({"input_ids": ids, "position_ids": ids[:1]}, 0),
        ({"input_ids": ids, "names": ["a", "b", "c", "d"]}, 0),
        ({"input_ids": ids, "logits_to_keep": torch.tensor([1, 2])}, 4),
        ((ids, ids), 4),
        (({"x": ids}, ids), 0),
    ]
    for batch, count in cases:
        assert rows_of(batch) == count
        if count:
            parts = halves(batch)
            assert [rows_of(part) for part in parts] == [2, 2]
            if isinstance(batch, Mapping) and "logits_to_keep" in batch:
                assert all(torch.equal(part["logits_to_keep"], batch["logits_to_keep"]) for part in parts)


def test_gradients_are_clipped_to_the_bits_of_torch() -> None:
    made = [torch.randn(5, 3), torch.randn(7)]
    for limit in (0.1, 2.0, 100.0):
        mine, theirs = ([nn.Parameter(one.clone()) for one in made] for _ in range(2))
        for one in (*mine, *theirs):
            one.grad = one.detach().clone()
        norm = clipped([one.grad for one in mine if one.grad is not None], limit)
        assert norm == float(nn.utils.clip_grad_norm_(theirs, limit))
        for one, other in zip(mine, theirs, strict=True):
            assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)
