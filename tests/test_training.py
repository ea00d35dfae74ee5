"""Training in transformers' own Trainer, and what it leaves on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.utils import logging as transformers_logging

import lorakit
from helpers import QLORA, adapters, make_llama


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The same row again and again is learned fast."""

    def __init__(self, count: int = 32) -> None:
        generator = torch.Generator().manual_seed(3)
        self.rows = torch.randint(0, 16, (count, 10), generator=generator)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def trainer(
    model: nn.Module, folder: Path, steps: int = 20, kind: type[Trainer] = Trainer, **options: object
) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        logging_steps=1,
        lr_scheduler_type="constant",
        **{"save_strategy": "no", **options},  # type: ignore[arg-type]
    )
    return kind(
        model=model,
        args=arguments,
        train_dataset=Rows(),
        eval_dataset=Rows(8),
        optimizers=(lorakit.optimizer(model, lr=5e-3), None),
    )


def test_two_runs_of_20_steps_give_the_same_bits(tmp_path: Path) -> None:
    ends = []
    for run in range(2):
        model = lorakit.apply(QLORA, make_llama(), seed=4)
        base = {name: value.clone() for name, value in model.state_dict().items() if "lora_" not in name}
        start = adapters(model)
        trainer(model, tmp_path / str(run)).train()
        ends.append(adapters(model))
        assert all(torch.equal(value, base[name]) for name, value in model.state_dict().items() if name in base)
        assert all(not torch.equal(ends[-1][name], start[name]) for name in start)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_checkpoints_hold_adapters_alone_and_resume_exactly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # transformers keeps its log lines to itself unless told otherwise
    transformers_logging.enable_propagation()
    whole = lorakit.apply("adapt q_proj,v_proj rank 4\ntrain model.norm", make_llama())
    run = trainer(whole, tmp_path / "run", steps=12, save_strategy="steps", save_steps=6)
    run.train()
    run.save_model(str(tmp_path / "final"))
    expected = {f"base_model.model.{name}" + ".weight" * ("lora_" in name) for name in adapters(whole)}
    assert set(load_file(tmp_path / "final" / "adapter_model.safetensors")) == expected
    assert not (tmp_path / "final" / "model.safetensors").exists()
    checkpoint = tmp_path / "run" / "checkpoint-6"
    # Trainer resumes by this one, and hands over nothing but what is in it
    assert set(load_file(checkpoint / "adapter_model.safetensors")) == expected
    in_state = {"lorakit_plan.default", *(f"lorakit_adapter.default.{name}" for name in expected)}
    assert set(load_file(checkpoint / "model.safetensors")) == in_state

    resumed = lorakit.apply("adapt q_proj,v_proj rank 4\ntrain model.norm", make_llama(), seed=99)
    again = trainer(resumed, tmp_path / "again", steps=12, save_strategy="steps", save_steps=6)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert "missing keys" not in caplog.text
    ends = adapters(resumed)
    assert all(torch.equal(value, ends[name]) for name, value in adapters(whole).items())

    # a checkpoint is an adapter folder like any other
    loaded = lorakit.load(tmp_path / "run" / "checkpoint-12", make_llama())
    assert all(torch.equal(value, ends[name]) for name, value in loaded.named_parameters() if name in ends)


def test_a_checkpoint_that_was_never_finished_is_refused_with_the_last_whole_one(tmp_path: Path) -> None:
    def run(kind: type[Trainer] = Trainer) -> Trainer:
        model = lorakit.apply("adapt q_proj,v_proj rank 4", make_llama())
        return trainer(model, tmp_path / "run", steps=6, kind=kind, save_strategy="steps", save_steps=2)

    class Ended(Trainer):
        """Ends, as a kill has it, between the weights and the state of a checkpoint."""

        last = 0

        def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
            if self.state.global_step > self.last:
                raise KeyboardInterrupt
            super()._save_optimizer_and_scheduler(output_dir)

    with pytest.raises(KeyboardInterrupt):
        run(Ended).train()
    assert lorakit.last_checkpoint(tmp_path / "run") is None
    with pytest.raises(TypeError, match="checkpoint-2 is not whole.*start without resume_from_checkpoint"):
        run().train(resume_from_checkpoint=True)
    Ended.last = 2
    with pytest.raises(KeyboardInterrupt):
        run(Ended).train()
    whole = str(tmp_path / "run" / "checkpoint-2")
    with pytest.raises(TypeError, match=f"checkpoint-4 is not whole.*give resume_from_checkpoint='{whole}'"):
        run().train(resume_from_checkpoint=True)
    assert lorakit.last_checkpoint(tmp_path / "run") == whole
    resumed = run()
    resumed.train(resume_from_checkpoint=whole)
    assert lorakit.last_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-6")
    unbroken = lorakit.apply("adapt q_proj,v_proj rank 4", make_llama())
    trainer(unbroken, tmp_path / "unbroken", steps=6).train()
    assert isinstance(resumed.model, nn.Module)
    ends = adapters(resumed.model)
    assert ends and all(torch.equal(value, ends[name]) for name, value in adapters(unbroken).items())


def test_a_second_adapter_trains_and_resumes_alone(tmp_path: Path) -> None:
    def both() -> nn.Module:
        model = lorakit.apply("adapt q_proj,k_proj rank 2", make_llama())
        return lorakit.apply("adapt q_proj,v_proj rank 4", model, name="second")

    whole = both()
    first = {name: value.clone() for name, value in whole.named_parameters() if not value.requires_grad}
    trainer(whole, tmp_path / "run", steps=4, save_strategy="steps", save_steps=2).train()
    assert all(torch.equal(value, first[name]) for name, value in whole.named_parameters() if name in first)
    saved = load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors")
    assert saved and not any("k_proj" in name for name in saved)

    resumed = both()
    trainer(resumed, tmp_path / "again", steps=4).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    ends = adapters(resumed)
    assert ends and all(torch.equal(value, ends[name]) for name, value in adapters(whole).items())


def test_the_best_checkpoint_comes_back(tmp_path: Path) -> None:
    model = lorakit.apply("adapt q_proj,v_proj rank 4", make_llama())
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4}
    run = trainer(model, tmp_path, steps=12, load_best_model_at_end=True, **options)
    run.train()
    best = load_file(Path(str(run.state.best_model_checkpoint)) / "adapter_model.safetensors")
    held = {name: value for name, value in model.named_parameters() if value.requires_grad}
    for name, value in held.items():
        assert torch.equal(best[f"base_model.model.{name}.weight"], value)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("order", ["before", "after"])
def test_gradients_survive_checkpointing(reentrant: bool, order: str, tokens: torch.Tensor) -> None:
    model = make_llama()
    options = {"use_reentrant": reentrant}
    if order == "before":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    lorakit.apply("adapt q_proj,v_proj rank 4 quant nf4", model)
    if order == "after":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    model.train()
    model(tokens, labels=tokens).loss.backward()
    plain = lorakit.apply("adapt q_proj,v_proj rank 4 quant nf4", make_llama()).train()
    plain(tokens, labels=tokens).loss.backward()
    for name, value in plain.named_parameters():
        if value.requires_grad:
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            torch.testing.assert_close(gradient, value.grad)
    assert any(
        value.grad is not None and value.grad.any() for name, value in model.named_parameters() if "lora_B" in name
    )


def test_a_quantized_checkpoint_of_transformers_trains(tmp_path: Path) -> None:
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    make_llama().save_pretrained(tmp_path / "base")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = LlamaForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=config, dtype=torch.float32, device_map="cpu"
    )
    lorakit.apply("adapt q_proj,v_proj rank 4", model)
    run = trainer(model, tmp_path / "run", steps=40)
    before = run.evaluate()["eval_loss"]
    run.train()
    assert run.evaluate()["eval_loss"] < before - 0.01


def test_merging_gives_the_model_its_own_save_back(tmp_path: Path, tokens: torch.Tensor) -> None:
    from transformers import LlamaForCausalLM

    model = lorakit.apply("adapt q_proj rank 4", make_llama())
    trainer(model, tmp_path / "run", steps=3).train()
    expected = model.eval()(tokens).logits
    merged: Any = lorakit.merge(model)
    merged.save_pretrained(tmp_path / "merged")
    plain = LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(plain(tokens).logits, expected, rtol=0, atol=1e-5)
