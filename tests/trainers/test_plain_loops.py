"""Loops of one's own: optimizers over all of a model's parameters, averaged and copied models, models in others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import lorakit
from helpers import adapters, make_llama, run_page

SPEC = "adapt q_proj,v_proj rank 4 dtype fp32 quant nf4"


def frozen(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if not value.requires_grad}


def learn(model: Any, optimizer: Any, tokens: torch.Tensor, steps: int = 2) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        return loss

    model.train()
    for _ in range(steps):
        optimizer.step(closure)


def schedule_free(parameters: Any) -> Any:
    made = pytest.importorskip("schedulefree").AdamWScheduleFree(parameters, lr=0.01, weight_decay=0.1)
    made.train()
    return made


MAKERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda all_of_them: torch.optim.AdamW(all_of_them, lr=0.01, weight_decay=0.5),
    "Adam": lambda all_of_them: torch.optim.Adam(all_of_them, lr=0.01, weight_decay=0.5),
    "foreach": lambda all_of_them: torch.optim.AdamW(all_of_them, lr=0.01, weight_decay=0.5, foreach=True),
    "SGD": lambda all_of_them: torch.optim.SGD(all_of_them, lr=0.01, momentum=0.9, weight_decay=0.5),
    "Adafactor": lambda all_of_them: torch.optim.Adafactor(all_of_them, weight_decay=0.1),
    "Muon": lambda all_of_them: torch.optim.Muon([one for one in all_of_them if one.ndim == 2], weight_decay=0.1),
    "schedule-free": schedule_free,
}


@pytest.mark.parametrize("name", MAKERS)
def test_an_optimizer_of_all_parameters_moves_the_adapters_alone(name: str, tokens: torch.Tensor) -> None:
    model: Any = lorakit.apply(SPEC, make_llama())
    before, base = adapters(model), frozen(model)
    learn(model, MAKERS[name](model.parameters()), tokens)
    assert len(before) == 8 and not any(torch.equal(before[one], value) for one, value in adapters(model).items())
    assert all(torch.equal(base[one], value) for one, value in frozen(model).items())


def test_lbfgs_takes_what_trains(tokens: torch.Tensor) -> None:
    for spec in ("adapt q_proj rank 2", SPEC):
        model: Any = lorakit.apply(spec, make_llama())
        base = frozen(model)
        if spec == SPEC:
            with pytest.raises(lorakit.TrainingError, match="holds quantized weights"):
                learn(model, torch.optim.LBFGS(model.parameters()), tokens)
        trained = [one for one in model.parameters() if one.requires_grad]
        learn(model, torch.optim.LBFGS(trained if spec == SPEC else model.parameters(), max_iter=2), tokens)
        assert any(bool(value.any()) for name, value in adapters(model).items() if "lora_B" in name)
        assert all(torch.equal(base[name], value) for name, value in frozen(model).items())


@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_averaged_model_is_saved_as_what_it_averaged(
    use_buffers: bool, tokens: torch.Tensor, tmp_path: Path
) -> None:
    model: Any = lorakit.apply(SPEC, make_llama())
    average: Any = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=use_buffers)
    optimizer = lorakit.optimizer(model, lr=0.01)
    for _ in range(3):
        learn(model, optimizer, tokens, steps=1)
        average.update_parameters(model)
    answers: list[torch.Tensor] = []
    for one in (model, average):
        loaded: Any = lorakit.load(lorakit.save(one, tmp_path / type(one).__name__), make_llama())
        assert torch.equal(loaded(tokens).logits, one.eval()(tokens).logits)
        answers.append(loaded(tokens).logits)
    own, averaged = answers
    assert not torch.allclose(own, averaged, rtol=0, atol=1e-4)


def test_a_copy_trains_apart(tokens: torch.Tensor) -> None:
    model: Any = lorakit.apply(SPEC, make_llama())
    twin = copy.deepcopy(model)
    before = adapters(model)
    learn(twin, lorakit.optimizer(twin), tokens)
    assert all(torch.equal(before[name], value) for name, value in adapters(model).items())
    assert not all(torch.equal(before[name], value) for name, value in adapters(twin).items())


class Holder(nn.Module):
    """Models in a module of somebody's."""

    policy: Any

    def __init__(self, **models: nn.Module) -> None:
        super().__init__()
        for name, model in models.items():
            self.add_module(name, model)

    def forward(self, **inputs: Any) -> Any:
        return self.policy(**inputs)


def test_a_module_that_holds_the_model_stands_for_it(tokens: torch.Tensor, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = lorakit.apply(SPEC, make_llama())
    holder = Holder(policy=model, head=nn.Linear(2, 2))
    around = [holder, nn.DataParallel(holder), torch.compile(holder, backend="eager"), Holder(policy=holder)]
    for number, one in enumerate(around):
        step = lorakit.Step(one, lorakit.optimizer(cast(nn.Module, one)))  # type: ignore[arg-type]
        step({"input_ids": tokens, "labels": tokens})
        lorakit.save(one, tmp_path / str(number))  # type: ignore[arg-type]
        assert lorakit.summary(one) == lorakit.summary(model)  # type: ignore[arg-type]
        lorakit.adapters(one).use({"default": 1.0})  # type: ignore[arg-type]
        assert lorakit.peft(one).base_model.model is model  # type: ignore[arg-type]
    assert lorakit.merge(holder) is model


def test_several_models_in_a_module_are_named(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    both = Holder(policy=lorakit.apply(SPEC, make_llama()), value=lorakit.apply(SPEC, make_llama()))
    for ask in (
        lorakit.optimizer, lorakit.adapters, lorakit.summary, lorakit.peft, lorakit.merge,
        lambda module: lorakit.save(module, tmp_path / "adapter"),
    ):  # fmt: skip
        with pytest.raises(lorakit.ModelError, match=r"2 adapted models, `policy` \(LlamaForCausalLM\), `value`"):
            ask(both)
    with pytest.raises(lorakit.ModelError, match="this Holder has no adapters"):
        lorakit.optimizer(Holder(policy=make_llama()))


def test_the_page(llama_folder: Path, tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page("A loop of your own", llama_folder, batches=[{"input_ids": tokens, "labels": tokens}])
    assert lorakit.load("adapter", str(llama_folder))
