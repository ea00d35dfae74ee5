"""The spec's optimizer in trainers that make their own: it is used where they let it, and its neglect is said."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

import lorakit
from helpers import adapters, make_llama

SGD = "adapt q_proj rank 4 lr 0.5\nadapt v_proj rank 4\noptimizer sgd lr 0.1"
ROWS = [{"input_ids": row, "labels": row} for row in torch.randint(0, 128, (8, 10), generator=torch.manual_seed(0))]


def trainer(model: Any, folder: Path, **given: Any) -> Trainer:
    settings = given.pop("settings", {})
    arguments = TrainingArguments(
        str(folder), max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", **settings
    )
    return Trainer(model, arguments, train_dataset=ROWS, **given)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("lorakit")]
    caplog.clear()
    return [message for message in messages if "not in force" in message]


@pytest.mark.parametrize(
    ("spec", "lost"),
    [
        (SGD, "`optimizer sgd lr 0.1`, `lr 0.5`"),
        ("adapt q_proj rank 4 paged", "`paged`"),
        ("adapt q_proj rank 4; optimizer adamw", "`optimizer adamw lr 0.0002`"),
        ("adapt q_proj rank 4\noptimizer adamw lr 3e-4 paged", "`optimizer adamw lr 0.0003 paged`"),
        ("adapt q_proj rank 4 lr_ratio 16", "`lr_ratio 16`"),
        ("adapt q_proj rank 4\ntrain model.norm lr 0.25", "`lr 0.25`"),
    ],
)
def test_what_a_trainers_own_optimizer_leaves_out_is_said_once(
    spec: str, lost: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(lorakit.apply(spec, make_llama()), tmp_path).train()
    (message,) = said(caplog)
    assert message.startswith("an AdamW steps that is not the spec's; ") and f"; not in force: {lost}; " in message
    assert "`optimizer_cls_and_kwargs=(lorakit.optimizer, {})`" in message


def test_nothing_is_said_where_nothing_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quiet = lorakit.apply("# no optimizer\nadapt q_proj rank 4", make_llama())
    trainer(quiet, tmp_path).train()
    for spec in (SGD, f"{SGD} paged"):
        model = lorakit.apply(spec, make_llama())
        trainer(model, tmp_path, optimizers=(lorakit.optimizer(model), None)).train()
        trainer(lorakit.apply(spec, make_llama()), tmp_path, optimizer_cls_and_kwargs=FACTORY).train()
    paged = lorakit.apply("adapt q_proj rank 4 paged", make_llama())
    own = torch.optim.AdamW([value for value in paged.parameters() if value.requires_grad])
    trainer(paged, tmp_path, optimizers=(lorakit.paged(own), None)).train()
    assert said(caplog) == []


def test_a_loop_of_ones_own_is_told_too(tokens: torch.Tensor, caplog: pytest.LogCaptureFixture) -> None:
    model: Any = lorakit.apply(SGD, make_llama()).train()
    optimizer = torch.optim.Adagrad([value for value in model.parameters() if value.requires_grad])
    for _ in range(2):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    (message,) = said(caplog)
    assert message.startswith("an Adagrad steps that is not the spec's")


FACTORY: Any = (lorakit.optimizer, {})


@pytest.mark.parametrize("views", [False, True])
def test_the_factory_makes_the_specs_optimizer(views: bool, tmp_path: Path) -> None:
    ends = []
    for given in ({}, {"optimizer_cls_and_kwargs": FACTORY}):
        model = lorakit.apply(SGD, make_llama())
        given = given or {"optimizers": (lorakit.optimizer(model), None)}
        run = trainer(lorakit.peft(model) if views else model, tmp_path, **given)
        run.train()
        ends.append(adapters(model))
        assert sorted(group["initial_lr"] for group in run.optimizer.param_groups) == [0.1, 0.5]  # type: ignore[union-attr]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    model = lorakit.apply(SGD, make_llama())
    run = trainer(model, tmp_path, optimizer_cls_and_kwargs=(lorakit.optimizer, {"lr": 0.2}))
    assert sorted(group["lr"] for group in run.create_optimizer().param_groups) == [0.2, 0.5]


def test_the_factory_serves_models_that_a_trainer_makes_itself(tmp_path: Path) -> None:
    given = {"model_init": lambda: lorakit.apply(SGD, make_llama()), "optimizer_cls_and_kwargs": FACTORY}
    run = trainer(None, tmp_path, **given)
    run.train()
    assert isinstance(run.model, nn.Module) and isinstance(run.optimizer.optimizer, torch.optim.SGD)  # type: ignore[union-attr]
    held = {value for group in run.optimizer.param_groups for value in group["params"]}  # type: ignore[union-attr]
    assert held == {value for value in run.model.parameters() if value.requires_grad}


@pytest.fixture
def one_process(tmp_path: Path) -> Any:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'rendezvous'}", world_size=1, rank=0)
    yield
    torch.distributed.destroy_process_group()


def test_the_factory_makes_it_of_what_was_sharded(one_process: None, tmp_path: Path, tokens: torch.Tensor) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    model: Any = lorakit.apply(SGD, make_llama())
    run = trainer(model, tmp_path, optimizer_cls_and_kwargs=FACTORY)
    early = copy.copy(run.create_optimizer().param_groups)
    # as a trainer under FSDP does: it wraps the model, and asks for the optimizer of that
    run.optimizer = None
    sharded = fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
    optimizer = run.create_optimizer(sharded)
    held = [value for group in optimizer.param_groups for value in group["params"]]
    assert len(held) == 8 and all(isinstance(value, DTensor) for value in held)
    assert not any(isinstance(value, DTensor) for group in early for value in group["params"])
    before = {name: value.full_tensor().clone() for name, value in model.named_parameters() if value.requires_grad}
    model.train()(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    after = {name: value.full_tensor() for name, value in model.named_parameters() if value.requires_grad}
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
