"""transformers' Trainer with the view: what it writes, takes up again and brings back is what it does without."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainingArguments

import lorakit
from helpers import adapters, make_llama

pytest.importorskip("peft")
SPEC = "adapt q_proj,v_proj rank 4 dropout 0.2 quant nf4 double\ntrain model.norm"
ROWS = [{"input_ids": row, "labels": row} for row in torch.randint(0, 128, (12, 10), generator=torch.manual_seed(0))]


def trainer(
    folder: Path, *, views: bool, spec: str = SPEC, model: Any = None, callbacks: Any = (), **settings: Any
) -> Trainer:
    model = model or lorakit.apply(spec, make_llama())
    settings = {"max_steps": 6, "save_steps": 2, "save_strategy": "steps", **settings}
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=2, per_device_eval_batch_size=12, logging_steps=1, report_to=[],
        learning_rate=1e-2, use_cpu=True, disable_tqdm=True, **settings,
    )  # fmt: skip
    return Trainer(
        lorakit.peft(model) if views else model, arguments, train_dataset=ROWS, eval_dataset=ROWS,
        callbacks=list(callbacks), optimizers=(lorakit.optimizer(model), None),
    )  # fmt: skip


def losses(run: Trainer) -> list[float]:
    return [record["loss"] for record in run.state.log_history if "loss" in record]


def trained(run: Any) -> dict[str, torch.Tensor]:
    return {name.removeprefix("base_model.model."): value for name, value in adapters(run.model).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_checkpoints_and_resuming_are_those_without_the_view(tmp_path: Path) -> None:
    runs = {}
    for views in (False, True):
        runs[views] = trainer(tmp_path / str(views), views=views)
        runs[views].train()
    assert losses(runs[True]) == losses(runs[False]) and same(trained(runs[True]), trained(runs[False]))
    for name in ("adapter_model.safetensors", "adapter_config.json", "plan.json"):
        first, second = (tmp_path / str(views) / "checkpoint-4" / name for views in runs)
        assert first.read_bytes() == second.read_bytes()
    held = [load_file(tmp_path / str(views) / "checkpoint-4" / "model.safetensors") for views in runs]
    assert same(*held)
    shutil.rmtree(tmp_path / "True" / "checkpoint-6")
    again = trainer(tmp_path / "True", views=True)
    again.train(resume_from_checkpoint=lorakit.last_checkpoint(tmp_path / "True"))
    assert losses(again)[-2:] == losses(runs[False])[-2:] and same(trained(again), trained(runs[False]))


@pytest.mark.parametrize("views", [False, True])
def test_a_run_goes_on_with_the_view_and_without_it(views: bool, tmp_path: Path) -> None:
    whole = trainer(tmp_path, views=views)
    whole.train()
    shutil.rmtree(tmp_path / "checkpoint-6")
    again = trainer(tmp_path, views=not views)
    again.train(resume_from_checkpoint=True)
    assert losses(again) == losses(whole) and same(trained(again), trained(whole))


class Spoil(TrainerCallback):
    """Spoils what trains after a step, so that the best checkpoint is not the last."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 3:
            with torch.no_grad():
                for value in model.parameters():
                    if value.requires_grad:
                        value.normal_(std=9.0, generator=torch.Generator().manual_seed(0))


def test_the_best_model_comes_back(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    found = []
    for views in (False, True):
        run = trainer(tmp_path / str(views), views=views, callbacks=[Spoil()], **settings)
        run.train()
        assert run.state.best_model_checkpoint == str(tmp_path / str(views) / "checkpoint-2")
        assert run.evaluate()["eval_loss"] == run.state.best_metric
        found.append(trained(run))
    assert same(*found)
    held = load_file(tmp_path / "True" / "checkpoint-2" / "adapter_model.safetensors")
    assert any(torch.equal(value, found[1]["model.norm.weight"]) for value in held.values())


def test_resuming_another_plan_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, views=True, max_steps=2).train()
    other = trainer(tmp_path, views=True, spec=SPEC.replace("rank 4", "rank 4 alpha 32"))
    with pytest.raises(lorakit.AdapterError, match="had alpha 4, and has 32 now"):
        other.train(resume_from_checkpoint=True)


def several(seed: int, used: dict[str, float]) -> Any:
    """Return a model with three adapters, these of them in use."""
    model = lorakit.apply("adapt q_proj rank 4 dropout 0.2", make_llama(), seed=seed)
    lorakit.apply("adapt q_proj,k_proj rank 2\ntrain model.norm", model, seed=seed, name="poet")
    lorakit.apply("adapt v_proj rank 2", model, seed=seed, name="third")
    lorakit.adapters(model).use(used)
    return model


@pytest.mark.parametrize("used", [{"default": 1.0, "poet": 1.0}, {"poet": 1.0, "third": 1.0}, {"third": 1.0}])
def test_several_adapters_are_each_saved_and_go_on(used: dict[str, float], tmp_path: Path) -> None:
    whole = trainer(tmp_path, views=True, model=several(0, used))
    whole.train()
    first, *others = used
    folders = {path.parent.name for path in (tmp_path / "checkpoint-4").glob("*/plan.json")}
    assert folders == {"default", "poet", "third"} - {first}
    for name, place in ((first, ""), *((other, other) for other in others)):
        loaded = lorakit.load(tmp_path / "checkpoint-6" / place, make_llama())
        model: Any = whole.model
        assert lorakit.adapters(loaded).plan("default") == lorakit.adapters(model.get_base_model()).plan(name)
    shutil.rmtree(tmp_path / "checkpoint-6")
    for views in (True, False):
        again = trainer(tmp_path / str(views), views=views, model=several(9, used))
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
        assert losses(again)[-2:] == losses(whole)[-2:] and same(trained(again), trained(whole))


def test_the_best_of_several_comes_back(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    model = several(0, {"poet": 1.0, "third": 1.0})
    run = trainer(tmp_path, views=True, model=model, callbacks=[Spoil()], **settings)
    run.train()
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert run.evaluate()["eval_loss"] == run.state.best_metric
