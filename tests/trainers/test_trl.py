"""TRL's trainers on what lorakit adapted: one model in memory, references that are right, losses that are PEFT's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lorakit
from helpers import adapters, byte_tokenizer, make_llama, randomize

peft = pytest.importorskip("peft")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
QLORA = "adapt q_proj,v_proj rank 4 dropout 0.5 quant nf4 double"
STARTED, PLUGGED = "adapt q_proj rank 4 quant nf4 init pissa", "adapt q_proj rank 4 quant ao_int8"
SPECS = [QLORA, f"{QLORA}\ntrain model.norm", STARTED, PLUGGED]
SIZES = {"vocab_size": 260, "max_position_embeddings": 128}
PAIRS = [{"prompt": f"say {i} ", "chosen": f"yes {i * 7}", "rejected": f"no {i * 3}"} for i in range(8)]
LABELLED = [{"prompt": f"say {i} ", "completion": f"yes {i * 7}", "label": i % 2 == 0} for i in range(8)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = byte_tokenizer()
    made.pad_token = made.eos_token
    return made


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any) -> Path:
    """A base model with its tokenizer, as a trainer loads it from a string."""
    make_llama(**SIZES).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def made(kind: str, model: Any, rows: Any, folder: Path, module: Any = trl, settings: Any = None, **given: Any) -> Any:
    """Return TRL's trainer of this kind for three steps on these rows."""
    settings = {"max_steps": 3, "save_strategy": "no", "learning_rate": 1e-2, **(settings or {})}
    arguments = getattr(module, f"{kind}Config")(
        output_dir=str(folder), per_device_train_batch_size=2, logging_steps=1, report_to=[], use_cpu=True, bf16=False,
        disable_tqdm=True, **settings,
    )  # fmt: skip
    data = datasets.Dataset.from_list(rows)
    return getattr(module, f"{kind}Trainer")(model=model, args=arguments, train_dataset=data, **given)


def trained(kind: str, model: Any, rows: Any, folder: Path, **given: Any) -> Any:
    trainer = made(kind, model, rows, folder, **given)
    trainer.train()
    return trainer


def logged(trainer: Any, name: str = "loss") -> list[float]:
    return [record[name] for record in trainer.state.log_history if "loss" in record]


def needs(spec: str) -> None:
    if "pissa" in spec:
        pytest.importorskip("lorakit_methods")
    if "ao_" in spec:
        pytest.importorskip("lorakit_torchao")


@pytest.mark.parametrize("spec", SPECS)
def test_dpo_begins_at_the_logarithm_of_two(spec: str, tmp_path: Path, tokenizer: Any) -> None:
    needs(spec)
    model = lorakit.apply(spec, make_llama(**SIZES))
    trainer = trained("DPO", lorakit.peft(model), PAIRS, tmp_path, processing_class=tokenizer)
    assert trainer.ref_model is None
    assert logged(trainer)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert logged(trainer, "rewards/chosen")[0] == 0 and logged(trainer, "rewards/chosen")[2] != 0


@pytest.mark.parametrize("given", ["object", "string", "config"])
def test_dpo_takes_a_spec_for_any_model(given: str, folder: Path, tmp_path: Path, tokenizer: Any) -> None:
    models = {"object": lambda: make_llama(**SIZES), "string": lambda: str(folder)}
    models["config"] = lambda: type(make_llama())(make_llama(**SIZES).config)
    config = lorakit.peft_config(QLORA)
    trainer = trained("DPO", models[given](), PAIRS, tmp_path, peft_config=config, processing_class=tokenizer)
    assert trainer.ref_model is None and isinstance(trainer.model, peft.PeftModel)
    assert lorakit.summary(trainer.model).modules[0].weight_dtype == "nf4 double"
    assert logged(trainer)[0] == pytest.approx(math.log(2), abs=1e-6) and logged(trainer)[2] != logged(trainer)[0]
    trainer.save_model(str(tmp_path / "out"))
    loaded = lorakit.load(tmp_path / "out", folder) if given == "string" else None
    for name, value in adapters(loaded).items() if loaded else ():
        assert torch.equal(value, adapters(trainer.model.get_base_model())[name])


def test_dpo_goes_on_from_an_adapter_as_it_is(tmp_path: Path, folder: Path, tokenizer: Any) -> None:
    """The reference is the adapter as it was loaded, not the base."""
    model = lorakit.apply(QLORA, folder)
    randomize(model)
    lorakit.save(model, tmp_path / "sft")
    again = lorakit.load(tmp_path / "sft", folder).train()
    trainer = trained("DPO", lorakit.peft(again), PAIRS, tmp_path / "out", processing_class=tokenizer)
    assert logged(trainer)[0] == pytest.approx(math.log(2), abs=1e-6)
    was = adapters(model)
    assert all(torch.equal(value, was[name]) for name, value in _reference(trainer.model, again).items())


def _reference(view: Any, model: nn.Module) -> dict[str, torch.Tensor]:
    view.set_adapter("ref")
    return adapters(model)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dpo_is_the_same_with_gradient_checkpointing(checkpointing: bool, tmp_path: Path, tokenizer: Any) -> None:
    found = []
    for checkpoints in (False, checkpointing):
        view = lorakit.peft(lorakit.apply(f"{QLORA}\ntrain model.norm", make_llama(**SIZES)))
        settings = {"gradient_checkpointing": checkpoints}
        found.append(logged(trained("DPO", view, PAIRS, tmp_path, settings=settings, processing_class=tokenizer)))
    assert found[0] == found[1]


@pytest.mark.parametrize("views", [True, False])
def test_grpo_begins_at_no_divergence(views: bool, tmp_path: Path, tokenizer: Any) -> None:
    model = make_llama(**SIZES)
    given = {} if views else {"peft_config": lorakit.peft_config(QLORA)}
    model = lorakit.peft(lorakit.apply(QLORA, model)) if views else model
    settings = {"beta": 0.1, "num_generations": 2, "max_completion_length": 4}
    trainer = trained(
        "GRPO", model, [{"prompt": row["prompt"]} for row in PAIRS], tmp_path, settings=settings,
        reward_funcs=lambda completions, **_: [float(len(one) % 7) for one in completions],
        processing_class=tokenizer, **given,
    )  # fmt: skip
    assert trainer.ref_model is None and logged(trainer, "kl")[0] == 0


@pytest.mark.parametrize("kind", ["KTO", "ORPO", "Reward"])
def test_other_losses_learn(kind: str, tmp_path: Path, tokenizer: Any) -> None:
    """The same by a view and by a config."""
    module = pytest.importorskip("trl.experimental.orpo") if kind == "ORPO" else trl
    spec = "adapt q_proj,v_proj rank 4 quant nf4 double" + "\ntrain score" * (kind == "Reward")
    found = []
    for views in (True, False):
        model = scorer() if kind == "Reward" else make_llama(**SIZES)
        given = {} if views else {"peft_config": lorakit.peft_config(spec)}
        model = lorakit.peft(lorakit.apply(spec, model)) if views else model
        rows = LABELLED if kind == "KTO" else PAIRS
        found.append(trained(kind, model, rows, tmp_path, module=module, processing_class=tokenizer, **given))
    assert logged(found[0]) == logged(found[1]) and len(set(logged(found[0]))) == 3
    mine, theirs = (adapters(trainer.model) for trainer in found)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def scorer() -> Any:
    """Return a small Llama that gives a text one number."""
    from transformers import LlamaForSequenceClassification

    config = make_llama(**SIZES).config
    config.num_labels, config.pad_token_id = 1, 0
    torch.manual_seed(0)
    return LlamaForSequenceClassification(config)


def test_sft_learns_as_without_the_view(tmp_path: Path, tokenizer: Any) -> None:
    spec, rows = "adapt q_proj,v_proj rank 4", [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
    found = [
        logged(trained("SFT", model, rows, tmp_path, processing_class=tokenizer))
        for model in (lorakit.apply(spec, make_llama(**SIZES)), lorakit.peft(lorakit.apply(spec, make_llama(**SIZES))))
    ]
    assert found[0] == found[1] and len(set(found[0])) == 3


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path, tokenizer: Any) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "disable_dropout": False, "max_steps": 4}
    runs = []
    for checkpoint in (None, str(tmp_path / "checkpoint-2")):
        view = lorakit.peft(lorakit.apply(QLORA, make_llama(**SIZES)))
        runs.append(made("DPO", view, PAIRS, tmp_path, settings=settings, processing_class=tokenizer))
        runs[-1].train(resume_from_checkpoint=checkpoint)
    assert logged(runs[0]) == logged(runs[1])
    mine, theirs = adapters(runs[1].model), adapters(runs[0].model)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def poet(seed: int, others: bool) -> Any:
    """Return a model whose adapter in use is not called `default`, which others may be."""
    model = lorakit.apply(QLORA, make_llama(**SIZES), seed=seed, name="poet")
    if others:
        for name in ("default", "third"):
            lorakit.apply("adapt k_proj,v_proj rank 2", model, seed=seed, name=name)
            randomize(model, seed=seed)
        lorakit.adapters(model).use("poet")
    randomize(model, seed=seed)
    return model


@pytest.mark.parametrize("others", [False, True])
def test_an_adapter_of_another_name_goes_on_with_its_reference(others: bool, tmp_path: Path, tokenizer: Any) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "disable_dropout": False, "max_steps": 4}
    runs = []
    for seed, checkpoint in ((1, None), (2, str(tmp_path / "checkpoint-2"))):
        view = lorakit.peft(poet(seed, others))
        runs.append(made("DPO", view, PAIRS, tmp_path, settings=settings, processing_class=tokenizer))
        runs[-1].train(resume_from_checkpoint=checkpoint)
    assert logged(runs[0]) == logged(runs[1]) and len(logged(runs[0])) == 4
    for name in ("poet", "ref"):
        for trainer in runs:
            trainer.model.set_adapter(name)
        mine, theirs = adapters(runs[1].model), adapters(runs[0].model)
        assert mine and all(torch.equal(mine[key], theirs[key]) for key in mine)
    # of an adapter alone it is that adapter, before it learned
    as_it_was = poet(1, others)
    lorakit.adapters(as_it_was).use("default" if others else "poet")
    was, reference = adapters(as_it_was), adapters(runs[1].model)
    assert was.keys() == {key.removeprefix("base_model.model.") for key in reference}
    assert all(torch.equal(value, reference[f"base_model.model.{key}"]) for key, value in was.items())


@pytest.mark.parametrize("kind", ["DPO", "KTO", "GRPO"])
def test_a_second_model_is_refused_before_it_is_loaded(kind: str, tmp_path: Path, tokenizer: Any) -> None:
    settings: dict[str, Any] = {"beta": 0.1, "num_generations": 2} if kind == "GRPO" else {}
    given = {"processing_class": tokenizer} | ({"reward_funcs": len} if kind == "GRPO" else {})
    # it has no name, so that loading it again would fail otherwise
    model = lorakit.apply(QLORA, make_llama(**SIZES))
    message = rf"{kind}Trainer would load a second model.*give it `lorakit.peft\(model\)`"
    with pytest.raises(lorakit.ModelError, match=message):
        made(kind, model, LABELLED if kind != "DPO" else PAIRS, tmp_path, settings=settings, **given)


def test_a_reference_of_ones_own_and_none_at_all_are_taken(tmp_path: Path, tokenizer: Any) -> None:
    model = lorakit.apply(QLORA, make_llama(**SIZES))
    trained("DPO", model, PAIRS, tmp_path, ref_model=make_llama(**SIZES), processing_class=tokenizer)
    model = lorakit.apply(QLORA, make_llama(**SIZES))
    settings = {"precompute_ref_log_probs": True}
    first = logged(trained("DPO", model, PAIRS, tmp_path, settings=settings, processing_class=tokenizer))[0]
    assert first == pytest.approx(math.log(2), abs=1e-6)
