"""What a spec says of its optimizer, and another one does not do, is said once, at the first step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lorakit

SPEC = "adapt @linear rank 2"
WAY = (
    "; `lorakit.optimizer(model)` makes the one with them, for transformers' Trainer as "
    "`optimizers=(lorakit.optimizer(model), None)`, or where it refuses that as "
    "`optimizer_cls_and_kwargs=(lorakit.optimizer, {})`"
)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


def steps(model: Any, optimizer: Any, count: int = 2) -> None:
    for _ in range(count):
        model(torch.ones(2, 8)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def adamw(lr: float = 1e-3, **given: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: torch.optim.AdamW(model.parameters(), lr=lr, **given)


@pytest.mark.parametrize(
    ("spec", "made", "lost"),
    [
        # what says nothing leaves all to the loop
        (SPEC, adamw(), ""),
        (f"{SPEC}\noptimizer sgd lr 0.1", adamw(), "`optimizer sgd lr 0.1`"),
        (f"{SPEC}; optimizer sgd", adamw(), "`optimizer sgd lr 0.01`"),
        (f"{SPEC}\noptimizer adamw lr 0.01", adamw(), "`optimizer adamw lr 0.01`"),
        (f"{SPEC}\noptimizer adamw lr 0.01", adamw(0.01), ""),
        (f"{SPEC}\noptimizer adamw(weight_decay=0.5)", adamw(2e-4), "`optimizer adamw(weight_decay=0.5) lr 0.0002`"),
        (f"{SPEC}\noptimizer adamw(weight_decay=0.5)", adamw(2e-4, weight_decay=0.5), ""),
        # what was written counts, though it be what is meant without
        (f"{SPEC}\noptimizer adamw", lambda model: torch.optim.SGD(model.parameters()), "`optimizer adamw lr 0.0002`"),
        (f"{SPEC} lr 0.5", adamw(), "`lr 0.5`"),
        (f"{SPEC} lr 0.5", adamw(0.5), ""),
        (f"{SPEC} lr_ratio 16", adamw(), "`lr_ratio 16`"),
        (f"{SPEC} paged", adamw(), "`paged`"),
        (f"{SPEC} paged", lambda model: lorakit.paged(adamw()(model)), ""),
        (f"{SPEC} lr 0.5\noptimizer sgd lr 0.1 paged", adamw(), "`optimizer sgd lr 0.1 paged`, `lr 0.5`"),
        (f"{SPEC} lr 0.5 paged\noptimizer sgd lr 0.1", lorakit.optimizer, ""),
    ],
)
def test_what_is_not_in_force(
    spec: str, made: Callable[[nn.Module], torch.optim.Optimizer], lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = lorakit.apply(spec, net())
    with caplog.at_level(logging.WARNING, "lorakit"):
        steps(model, made(model))
    said = [one.getMessage() for one in caplog.records if "not in force" in one.getMessage()]
    name = "SGD" if "an SGD" in "".join(said) else "AdamW"
    words = f"an {name} steps that is not the spec's; not in force: {lost}{WAY}"
    assert said == ([words] if lost else [])


def test_rates_by_rule_that_a_loop_takes_over(caplog: pytest.LogCaptureFixture) -> None:
    model = lorakit.apply(f"{SPEC} lr_ratio 4 lr 0.5", net())
    groups = [{"params": one["params"], "lr": one["lr"]} for one in lorakit.optimizer(model).param_groups]
    optimizer = torch.optim.AdamW(groups)
    # a warm-up begins at nought
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 10))
    steps(model, optimizer)
    steps(model, lorakit.Step(model, lorakit.optimizer(model)).optimizer)
    assert not caplog.records


@pytest.mark.filterwarnings("ignore")
def test_in_accelerate(caplog: pytest.LogCaptureFixture) -> None:
    from accelerate import Accelerator

    model, optimizer = Accelerator(cpu=True).prepare(
        (adapted := lorakit.apply(f"{SPEC}\noptimizer sgd", net())), adamw()(adapted)
    )
    steps(model, optimizer)
    assert [one.getMessage() for one in caplog.records if "`optimizer sgd lr 0.01`" in one.getMessage()]


def test_of_a_compiled_model(caplog: pytest.LogCaptureFixture) -> None:
    model: Any = torch.compile(lorakit.apply(f"{SPEC}\noptimizer sgd", net()), backend="eager")
    steps(model, adamw()(model))
    assert len([one for one in caplog.records if one.name == "lorakit"]) == 1
    base = net()
    early = adamw()(base)
    model = torch.compile(lorakit.apply(SPEC, base), backend="eager")
    with pytest.raises(lorakit.TrainingError, match="made before the model was adapted"):
        steps(model, early)
