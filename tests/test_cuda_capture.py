"""Steps as CUDA graphs: the bits of steps that run one operation after the other, whatever form batches come in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Trainer, TrainingArguments

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


def test_what_trains_later_is_captured_anew() -> None:
    model: Any = lorakit.apply(SPEC, make_llama(**SIZES).to("cuda", torch.bfloat16)).train()
    step = lorakit.Step(model, lorakit.optimizer(model)).capture()
    first = [float(step(batch(0))) for _ in range(2)]
    state = {name: value.clone() for name, value in adapters(model).items()}
    for path, parameter in model.named_parameters():
        if path.endswith("lora_B"):
            # what another tensor holds, in another place
            parameter.data = torch.zeros_like(parameter)
    again = float(step(batch(0)))
    assert again == pytest.approx(first[0], rel=1e-3) and again != first[1]
    assert any(not torch.equal(value, state[name]) for name, value in adapters(model).items())


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


class Own(Trainer):
    """Computes a loss of its own."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return 2 * super().compute_loss(*args, **kwargs)


def trainer(folder: Path, kind: type[Trainer] = Trainer, **settings: Any) -> Trainer:
    model: Any = lorakit.apply(SPEC, make_llama(**SIZES).to("cuda", torch.bfloat16))
    rows = [{name: value[0].tolist() for name, value in batch(number, rows=1).items()} for number in range(12)]
    arguments = TrainingArguments(
        str(folder), max_steps=4, per_device_train_batch_size=2, report_to="none", logging_steps=1, disable_tqdm=True,
        save_strategy="no", **settings,
    )  # fmt: skip
    return kind(model, arguments, train_dataset=rows, optimizers=(lorakit.optimizer(model), None))


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2, "bf16": True}], ids=str)
def test_transformers_trainer_has_the_losses_that_it_has_without(tmp_path: Path, settings: Any) -> None:
    logged = []
    for captured in (False, True):
        one = trainer(tmp_path, **settings)
        lorakit.survive(one)
        if captured:
            lorakit.capture(one)
            graphs = one.training_step.__self__._captured._graphs  # type: ignore[attr-defined]
        one.train()
        logged.append([entry["loss"] for entry in one.state.log_history if "loss" in entry])
    assert len(logged[0]) == 4 and logged[1] == pytest.approx(logged[0], rel=1e-3)
    assert [graph is not None for graph in graphs.values()] == [True]


def test_a_trainer_with_a_loss_of_its_own_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(lorakit.ModelError, match="capture: Own computes a loss of its own.*loss_is_summed = True"):
        lorakit.capture(trainer(tmp_path, Own))


def test_a_model_on_the_cpu_is_refused() -> None:
    model = nn.Linear(2, 2)
    step = lorakit.Step(model, torch.optim.SGD(model.parameters(), 0.1), functional.mse_loss)
    with pytest.raises(lorakit.ModelError, match="capture: the model is not on a CUDA device"):
        step.capture()
