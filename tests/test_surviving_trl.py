"""TRL's SFTTrainer, with what lorakit puts around its steps where memory runs out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lorakit
from helpers import adapters, byte_tokenizer, make_llama
from lorakit.stepping.ladder import Rung

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

LENGTHS = (5, 9, 3, 7, 4, 6)
SPEC = "adapt q_proj,v_proj rank 2 dropout 0.1\noptimizer adamw lr 1e-2"


def train(
    folder: Path, spec: str, fails: Callable[[int, int], bool] | None, *, summed: bool = False
) -> tuple[Any, Any]:
    """Train for three steps with a survivor, or without; forward passes fail by their number and rows."""
    torch.manual_seed(0)
    model = lorakit.apply(spec, make_llama(vocab_size=300))
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(1, 256, (length,), generator=generator).tolist()} for length in LENGTHS]
    arguments = trl.SFTConfig(
        str(folder), max_steps=3, per_device_train_batch_size=2, report_to="none", logging_steps=1, disable_tqdm=True,
        save_strategy="no", use_cpu=True, bf16=False, seed=1,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model,
        arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=byte_tokenizer(),
        optimizers=(lorakit.optimizer(model), None),
    )
    trainer.loss_is_summed = summed
    survivor, count = None, itertools.count()

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        if fails is not None and fails(next(count), len(kwargs["input_ids"])):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    if fails is not None:
        model.register_forward_pre_hook(enter, with_kwargs=True)
        survivor = lorakit.survive(trainer)
    trainer.train()
    return trainer, survivor


def logged(trainer: Any, *names: str) -> list[list[float]]:
    return [[record[name] for name in names] for record in trainer.state.log_history if "loss" in record]


def test_a_step_of_trl_that_ran_out_is_done_again_and_no_figure_differs(tmp_path: Path) -> None:
    whole, _ = train(tmp_path, SPEC, None)
    failing, survivor = train(tmp_path, SPEC, lambda call, rows: call in (1, 3, 4))
    assert [climb.rung for climb in survivor.climbs if climb.milliseconds] == [Rung.AGAIN, Rung.SEND]
    # what TRL counts itself has neither the tries that failed in it nor the longest rows before the first step
    names = ("loss", "grad_norm", "entropy", "num_tokens", "mean_token_accuracy")
    assert logged(failing, *names) == logged(whole, *names)
    mine, theirs = adapters(failing.model), adapters(whole.model)
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_a_loss_that_is_said_to_be_a_sum_is_split(tmp_path: Path) -> None:
    spec = SPEC.replace(" dropout 0.1", "")
    whole, _ = train(tmp_path, spec, None)
    split, survivor = train(tmp_path, spec, lambda call, rows: rows > 1, summed=True)
    assert {climb.rung for climb in survivor.climbs} == {Rung.SPLIT}
    for one, other in zip(logged(split, "loss", "num_tokens"), logged(whole, "loss", "num_tokens"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    mine, theirs = adapters(split.model), adapters(whole.model)
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-6)


def test_a_loss_of_trls_own_is_not_split_unasked(tmp_path: Path) -> None:
    with pytest.raises(torch.OutOfMemoryError) as caught:
        train(tmp_path, SPEC, lambda call, rows: rows > 1)
    assert "SFTTrainer computes a loss of its own; where that is a sum over tokens" in caught.value.__notes__[0]
    assert "`trainer.loss_is_summed = True`" in caught.value.__notes__[0]
