"""What would train nothing, or not what was meant, is told by the first step, in a plain loop and in a Trainer."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lorakit
from helpers import adapters, make_llama

QLORA = "adapt q_proj,v_proj rank 4 quant nf4"


def learn(model: Any, optimizer: Any, tokens: torch.Tensor, labels: torch.Tensor | None = None) -> None:
    model.train()
    model(input_ids=tokens, labels=tokens if labels is None else labels).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def trainer(model: Any, folder: Path, tokens: torch.Tensor, **given: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(str(folder), max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True)
    return Trainer(model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in tokens], **given)


@pytest.mark.parametrize("spec", ["adapt q_proj rank 4", QLORA])
def test_an_optimizer_from_before_is_refused(spec: str, tokens: torch.Tensor, tmp_path: Path) -> None:
    for run in ("loop", "trainer"):
        model = make_llama()
        optimizer = torch.optim.AdamW(model.parameters())
        lorakit.apply(spec, model)
        with pytest.raises(lorakit.TrainingError, match="It was made before the model was adapted"):
            if run == "loop":
                learn(model, optimizer, tokens)
            else:
                trainer(model, tmp_path, tokens, optimizers=(optimizer, None)).train()


def test_adapters_frozen_afterwards_are_named_with_what_does_it(tokens: torch.Tensor, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    for freeze in (peft.prepare_model_for_kbit_training, lambda model: model.requires_grad_(False)):
        model = freeze(lorakit.apply(QLORA, make_llama()))
        with pytest.raises(lorakit.ModelError, match="prepare_model_for_kbit_training"):
            lorakit.optimizer(model)
        with pytest.raises(lorakit.TrainingError, match="prepare_model_for_kbit_training"):
            trainer(model, tmp_path, tokens).train()
        lorakit.adapters(model).use("default")
        learn(model, lorakit.optimizer(model), tokens)


def test_the_usual_script_prepares_first_and_trains() -> None:
    peft = pytest.importorskip("peft")
    model = peft.prepare_model_for_kbit_training(make_llama())
    assert len(adapters(peft.get_peft_model(model, lorakit.peft_config(QLORA)))) == 8


def test_a_fresh_head_has_to_train(tokens: torch.Tensor, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    make_llama().save_pretrained(tmp_path)
    labels = torch.tensor([0, 1, 0])
    for spec in ("adapt q_proj rank 2", QLORA, "adapt @linear rank 2", "adapt q_proj rank 2\ntrain score"):
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2, pad_token_id=0)
        lorakit.apply(spec, model)
        if "train" in spec:
            learn(model, lorakit.optimizer(model), tokens, labels)
            continue
        with pytest.raises(lorakit.TrainingError, match=r"lack `score.weight`.*Have the spec train it: `train score`"):
            learn(model, lorakit.optimizer(model), tokens, labels)
        if "@linear" not in spec and "quant" not in spec:
            model.score.requires_grad_(True)
            learn(model, lorakit.optimizer(model), tokens, labels)


@pytest.mark.parametrize("streams", [True, False])
def test_weights_that_were_read_are_not_fresh(streams: bool, tokens: torch.Tensor, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    make_llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    model: Any = lorakit.apply(QLORA, tmp_path) if streams else AutoModelForCausalLM.from_pretrained(tmp_path)
    if not streams:
        model.resize_token_embeddings(140)
        lorakit.apply(QLORA, model)
    learn(model, lorakit.optimizer(model), tokens)


def test_a_first_batch_without_a_learned_token_is_refused(tokens: torch.Tensor) -> None:
    model: Any = lorakit.apply(QLORA, make_llama())
    with pytest.raises(lorakit.TrainingError, match="every label is -100"):
        learn(model, lorakit.optimizer(model), tokens, torch.full_like(tokens, -100))
    # a later one may be so, among others of its step
    learn(model, lorakit.optimizer(model), tokens)
    model(input_ids=tokens, labels=torch.full_like(tokens, -100))


def test_a_step_without_a_gradient_is_refused(tokens: torch.Tensor) -> None:
    model: Any = lorakit.apply(QLORA, make_llama()).train()
    optimizer = lorakit.optimizer(model)
    model(input_ids=tokens)
    with pytest.raises(lorakit.TrainingError, match="none of the 8 parameters of the adapters.*has a gradient"):
        optimizer.step()
    (model(input_ids=tokens, labels=tokens).loss * float("nan")).backward()
    with pytest.raises(lorakit.TrainingError, match="and 7 more is not finite"):
        optimizer.step()


class Half(nn.Module):
    """Two layers, one of which is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.used(x)
        return result


def test_an_adapter_that_no_gradient_reaches_is_named(caplog: pytest.LogCaptureFixture) -> None:
    model: Any = lorakit.apply("adapt @linear rank 2", Half())
    optimizer = lorakit.optimizer(model)
    with caplog.at_level(logging.WARNING, "lorakit"):
        for _ in range(2):
            model(torch.randn(2, 4)).sum().backward()
            optimizer.step()
    (record,) = caplog.records
    assert record.getMessage().startswith("2 of 4 parameters of the adapters, first `unused.lora_A`, got no gradient")


def test_what_trains_beside_the_adapters_is_said_to_be_lost(
    tokens: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    model: Any = lorakit.apply("adapt q_proj rank 4\ntrain lm_head", make_llama())
    model.model.norm.requires_grad_(True)
    for _ in range(2):
        learn(model, torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1), tokens)
        model.model.norm.requires_grad_(False)
    (record,) = caplog.records
    assert "1 parameters of the model train beside its adapters, first `model.norm.weight`" in record.getMessage()
    assert "`train model.norm`" in record.getMessage()


def test_what_is_right_passes(tokens: torch.Tensor) -> None:
    """Closures, optimizers of other things beside, copies, compiled models, evaluation, and after merging."""
    model: Any = lorakit.apply("adapt q_proj rank 4", make_llama())
    other = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=1.0)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    for one in (model, copy.deepcopy(model), compiled):
        learn(one, lorakit.optimizer(one), tokens)
        other.step()
    model.model.norm.requires_grad_(True)
    learn(model, torch.optim.SGD(model.model.norm.parameters(), lr=0.1), tokens)
    optimizer = torch.optim.LBFGS([value for value in model.parameters() if value.requires_grad], max_iter=1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    model.eval().requires_grad_(False)(input_ids=tokens)
    assert not lorakit.merge(model)._forward_pre_hooks
