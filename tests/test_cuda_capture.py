"""Steps as CUDA graphs: the bits of steps that run one operation after the other, whatever form batches come in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import lorakit
from helpers import adapters, make_llama

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SIZES = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 512, "max_position_embeddings": 2048}
SPEC = "adapt @linear rank 8 quant nf4 double\noptimizer adamw lr 1e-2"


def steps(spec: str, batches: list[Any], *, captured: bool, said: list[str] | None = None) -> tuple[list[float], Any]:
    model: Any = lorakit.apply(spec, make_llama(**SIZES).to("cuda", torch.bfloat16)).train()
    step = lorakit.Step(model, lorakit.optimizer(model), max_grad_norm=1.0, say=(said or []).append)
    if captured:
        step.capture()
    torch.manual_seed(3)
    losses = [step(*batch) if isinstance(batch, list) else step(batch) for batch in batches]
    assert all(isinstance(loss, Tensor) and loss.is_cuda for loss in losses)
    return [float(loss) for loss in losses], adapters(model)


def batch(number: int, rows: int = 2, tokens: int = 128, learned: int = 100) -> dict[str, Tensor]:
    ids = torch.randint(1, 512, (rows, tokens), generator=torch.Generator().manual_seed(number))
    labels = ids.clone()
    labels[:, :-learned] = -100
    return {"input_ids": ids, "labels": labels}


@pytest.mark.parametrize("spec", [SPEC, f"{SPEC} paged", SPEC.replace("rank 8", "rank 8 dropout 0.1")])
def test_captured_steps_have_the_bits_of_others(spec: str) -> None:
    # one form, then another, then the first again; two batches as one step
    batches: list[Any] = [batch(0), batch(1), batch(2, rows=1), [batch(3), batch(4, learned=30)], batch(5)]
    said: list[str] = []
    eager, trained = steps(spec, batches, captured=False)
    losses, others = steps(spec, batches, captured=True, said=said)
    assert not said
    if "dropout" in spec:
        # drawn from the same generator, otherwise
        assert losses == pytest.approx(eager, rel=5e-2)
        return
    assert losses == eager
    assert all(torch.equal(value, others[name]) for name, value in trained.items())


def test_rows_of_any_length_share_few_graphs() -> None:
    batches = []
    for number, tokens in enumerate(range(100, 230, 10)):
        made = batch(number, tokens=tokens, learned=60)
        made["attention_mask"] = torch.ones_like(made["input_ids"])
        made["attention_mask"][0, -20:] = 0
        made["labels"][0, -20:] = -100
        batches.append(made)
    said: list[str] = []
    eager, _ = steps(SPEC, batches, captured=False)
    model: Any = lorakit.apply(SPEC, make_llama(**SIZES).to("cuda", torch.bfloat16)).train()
    step = lorakit.Step(model, lorakit.optimizer(model), max_grad_norm=1.0, say=said.append).capture()
    losses = [float(step(one)) for one in batches]
    assert losses == pytest.approx(eager, rel=2e-2) and not said
    assert step._captured is not None and len(step._captured._graphs) == 3


class Asks(nn.Module):
    """Asks the device on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if float(x.sum()) > -1e9 else x


def test_what_waits_for_the_device_is_said_and_runs_as_ever() -> None:
    said: list[str] = []
    results = []
    for captured in (False, True):
        torch.manual_seed(0)
        model = Asks().cuda()
        step = lorakit.Step(model, torch.optim.SGD(model.parameters(), 0.1), functional.mse_loss, say=said.append)
        if captured:
            step.capture()
        torch.manual_seed(1)
        losses = [float(step((torch.randn(4, 8), torch.randn(4, 8)))) for _ in range(3)]
        results.append((losses, model.inner.weight.detach().clone()))
    assert results[0][0] == results[1][0] and torch.equal(results[0][1], results[1][1])
    (line,) = said
    assert "waits for the device" in line and "test_cuda_capture.py" in line
    # what failed leaves nothing behind: generators draw, others are captured
    assert torch.randn(3, device="cuda").isfinite().all()
    eager, _ = steps(SPEC, [batch(0)], captured=False)
    losses, _ = steps(SPEC, [batch(0)], captured=True)
    assert losses == eager
