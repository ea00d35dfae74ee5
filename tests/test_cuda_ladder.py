"""Steps on a CUDA device whose memory really runs out: what dies without the ladder finishes, to the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import lorakit
from helpers import adapters, make_llama
from lorakit.stepping.ladder import Rung

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SPEC = "adapt q_proj,v_proj,down_proj rank 8 quant nf4 double\nquantize @linear nf4 double\noptimizer adamw lr 1e-2"
SIZES = {"hidden_size": 512, "intermediate_size": 2048, "vocab_size": 4096, "max_position_embeddings": 2048}


class Run:
    def __init__(self, spec: str = SPEC) -> None:
        self.model = lorakit.apply(spec, make_llama(**SIZES).to("cuda", torch.bfloat16)).train()
        self.said: list[str] = []
        self.step = lorakit.Step(self.model, lorakit.optimizer(self.model), say=self.said.append)

    def steps(self, count: int = 4) -> list[float]:
        torch.manual_seed(1)
        return [float(self.step(batch(number))) for number in range(count)]


def batch(number: int, rows: int = 8) -> dict[str, Tensor]:
    ids = torch.randint(0, 4096, (rows, 1024), generator=torch.Generator().manual_seed(number))
    return {"input_ids": ids, "labels": ids}


@contextmanager
def room(size: float) -> Iterator[None]:
    """Let the process have so many bytes of the device at most."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(size / torch.cuda.get_device_properties(0).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def measured(run: Run) -> tuple[list[float], int, int]:
    """Return the losses of a run's steps, and the bytes held before them and at their peak."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    losses = run.steps()
    return losses, before, torch.cuda.max_memory_allocated()


def test_saved_tensors_in_cpu_memory_give_the_same_bits() -> None:
    whole = Run()
    losses, before, peak = measured(whole)
    expected = {name: value.cpu() for name, value in adapters(whole.model).items()}
    del whole
    run = Run()
    with room(before + 0.75 * (peak - before)):
        assert run.steps() == losses
    assert max(climb.rung for climb in run.step.climbs) is Rung.SEND and run.said
    assert max(climb.bytes for climb in run.step.climbs) > 1 << 20
    assert all(torch.equal(value.cpu(), expected[name]) for name, value in adapters(run.model).items())


def test_without_the_ladder_such_a_run_dies() -> None:
    whole = Run()
    _, before, peak = measured(whole)
    del whole
    run = Run()
    optimizer: Any = lorakit.optimizer(run.model)
    with room(before + 0.6 * (peak - before)), pytest.raises(torch.OutOfMemoryError):
        for number in range(4):
            optimizer.zero_grad()
            run.model(**{name: value.cuda() for name, value in batch(number).items()}).loss.backward()
            optimizer.step()


def test_a_batch_that_fits_in_parts_alone_is_split() -> None:
    whole = Run()
    losses, before, peak = measured(whole)
    del whole
    run = Run()
    with room(before + 0.3 * (peak - before)):
        split = run.steps()
    assert Rung.SPLIT in {climb.rung for climb in run.step.climbs}
    assert split == pytest.approx(losses, rel=2e-2)


def test_generators_of_the_device_go_back_too() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2048, 2048), nn.Dropout(0.3), nn.Linear(2048, 2048), nn.Dropout(0.3)).cuda()
    inputs = torch.randn(16384, 2048)
    results = []
    for share in (None, 0.7):
        model = nn.Sequential(*net)
        step = lorakit.Step(model, torch.optim.SGD(model.parameters(), 0.0), functional.mse_loss, say=lambda line: None)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.manual_seed(5)
        if share is None:
            torch.cuda.reset_peak_memory_stats()
            loss = step((inputs, inputs))
            needed = torch.cuda.max_memory_allocated() - before
        else:
            with room(before + share * needed):
                loss = step((inputs, inputs))
            assert step.climbs
        gradient = model.get_parameter("0.weight").grad
        assert gradient is not None
        results.append((loss, gradient.clone(), torch.cuda.get_rng_state()))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1]) and torch.equal(results[0][2], results[1][2])
