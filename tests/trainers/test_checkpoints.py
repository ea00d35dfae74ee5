"""transformers' Trainer as it is: what it leaves on disk, takes up again, brings back and refuses."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

import lorakit
from helpers import adapters, make_llama, randomize

SPEC = "adapt q_proj,v_proj rank 4"
ROWS = [{"input_ids": row, "labels": row} for row in torch.randint(0, 128, (12, 10), generator=torch.manual_seed(0))]
FILES = {"adapter_model.safetensors", "adapter_config.json", "plan.json"}


class Net(nn.Module):
    """A small model that knows nothing of transformers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.hidden, self.norm, self.head = (
            nn.Embedding(128, 16), nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 128)
        )  # fmt: skip

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(self.norm(torch.relu(self.hidden(self.embed(input_ids)))))
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def net(seed: int = 0) -> nn.Module:
    return lorakit.apply("adapt hidden,head rank 2 dropout 0.2\ntrain norm", Net(), seed=seed)


def llama(seed: int = 0) -> nn.Module:
    return lorakit.apply("adapt q_proj,v_proj rank 4 dropout 0.2 quant nf4\ntrain model.norm", make_llama(), seed=seed)


def three(seed: int = 0) -> nn.Module:
    """Three adapters, two in use, of which one stands around the other."""
    model = lorakit.apply("adapt q_proj rank 2 dropout 0.2", make_llama(), seed=seed)
    lorakit.apply("adapt q_proj,v_proj rank 4", model, name="second", seed=seed)
    lorakit.apply("adapt k_proj rank 2", model, name="third", seed=seed)
    lorakit.adapters(model).use({"default": 1.0, "second": 0.5})
    return model


def named(seed: int = 0) -> nn.Module:
    """Two adapters in use, neither of which is called `default`."""
    model = lorakit.apply("adapt q_proj rank 2", make_llama(), name="first", seed=seed)
    lorakit.apply("adapt v_proj rank 2", model, name="second", seed=seed)
    lorakit.adapters(model).use({"first": 1.0, "second": 1.0})
    return model


def trainer(model: Any, folder: Path, callbacks: Any = (), **settings: Any) -> Trainer:
    settings = {"max_steps": 4, "save_steps": 2, "save_strategy": "steps", "learning_rate": 1e-2, **settings}
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=2, per_device_eval_batch_size=12, logging_steps=1, report_to=[],
        use_cpu=True, disable_tqdm=True, **settings,
    )  # fmt: skip
    given = (lorakit.optimizer(model, lr=1e-2), None)
    return Trainer(model, arguments, train_dataset=ROWS, eval_dataset=ROWS, callbacks=list(callbacks), optimizers=given)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = adapters(one), adapters(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(
    ("make", "folders"), [(llama, [""]), (net, [""]), (three, ["", "second"]), (named, ["first", "second"])]
)
def test_a_run_goes_on_from_adapters_alone_to_the_same_bits(
    make: Callable[[int], nn.Module], folders: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transformers_logging.enable_propagation()
    whole = make(0)
    run = trainer(whole, tmp_path / "run")
    run.train()
    run.save_model(str(tmp_path / "final"))
    checkpoint = tmp_path / "run" / "checkpoint-2"
    written = {str(Path(folder, name)) for folder in folders for name in FILES}
    assert {name for name in names(checkpoint) if name.endswith((".json", "safetensors"))} == {
        *written, "model.safetensors", "trainer_state.json"
    }  # fmt: skip
    assert names(tmp_path / "final") == {*written, "training_args.bin"}
    trained = sum(value.numel() for value in adapters(whole).values())
    held = load_file(checkpoint / "model.safetensors").items()
    assert sum(value.numel() for name, value in held if "lorakit_plan" not in name) == trained

    resumed = make(9)
    again = trainer(resumed, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    again.train(resume_from_checkpoint=True)
    assert same(resumed, whole) and again.state.log_history[-2]["loss"] == run.state.log_history[-2]["loss"]
    assert "keys" not in caplog.text and "another optimizer" not in caplog.text
    for folder in folders:
        base = Net() if make is net else make_llama()
        loaded = lorakit.load(tmp_path / "final" / folder, base)
        plan = lorakit.adapters(loaded).plan("default")
        assert plan == lorakit.adapters(whole).plan(folder or "default")
    assert lorakit.last_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-4")


def test_peft_opens_each_of_several(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model: Any = three()
    run = trainer(model, tmp_path / "run", max_steps=2)
    run.train()
    opened = peft.PeftModel.from_pretrained(make_llama(), tmp_path / "run" / "checkpoint-2")
    opened.load_adapter(tmp_path / "run" / "checkpoint-2" / "second", "second")
    for name in ("default", "second"):
        opened.set_adapter(name)
        lorakit.adapters(model).use(name)
        tokens = ROWS[0]["input_ids"][None]
        theirs, mine = opened.eval()(tokens).logits, model.eval()(tokens).logits
        torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-6)


class Spoil(TrainerCallback):
    """Spoils what trains after a step, so that the best checkpoint is not the last."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 3:
            with torch.no_grad():
                for value in model.parameters():
                    if value.requires_grad:
                        value.normal_(std=9.0, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make", [llama, net, three])
def test_the_best_model_comes_back(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    run = trainer(make(), tmp_path, [Spoil()], **settings)
    run.train()
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert run.evaluate()["eval_loss"] == run.state.best_metric


OTHERS = {
    f"{SPEC} alpha 64": r"`model.layers.0.self_attn.q_proj` had alpha 4, and has 64 now",
    f"{SPEC} quant nf4 dtype fp32": r"`model.layers.0.self_attn.q_proj` had no quant, and has nf4 now",
    "adapt k_proj,v_proj rank 4": r"`model.layers.0.self_attn.q_proj` is decided by it alone",
    "adapt q_proj,v_proj rank 8": r"`model.layers.0.self_attn.q_proj` had rank 4, and has 8 now",
    f"{SPEC} dropout 0.1": "had dropout 0, and has 0.1 now",
    f"{SPEC}\ntrain model.norm": "`model.norm` is decided by the other alone",
}


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("left")
    trainer(lorakit.apply(SPEC, make_llama()), folder, max_steps=2).train()
    return folder / "checkpoint-2"


@pytest.mark.parametrize("spec", OTHERS)
def test_another_plan_is_refused_before_anything_is_changed(
    spec: str, left: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transformers_logging.enable_propagation()
    model = lorakit.apply(spec, make_llama())
    before = adapters(model)
    with pytest.raises(lorakit.AdapterError, match=OTHERS[spec]):
        trainer(model, tmp_path).train(resume_from_checkpoint=str(left))
    after = adapters(model)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert "keys" not in caplog.text


def pissa(seed: int) -> nn.Module:
    return lorakit.apply("adapt q_proj rank 2 quant nf4 init pissa(iterations=1)", make_llama(), seed=seed)


@pytest.mark.parametrize("views", [False, True])
def test_another_start_from_the_base_is_refused(views: bool, tmp_path: Path) -> None:
    """With another seed this start takes another part of the base weights, which no tensor of the adapter shows."""
    pytest.importorskip("lorakit_methods")
    whole = pissa(0)
    wrap = lorakit.peft if views else lambda model: model
    trainer(wrap(whole), tmp_path).train()
    shutil.rmtree(tmp_path / "checkpoint-4")
    with pytest.raises(lorakit.AdapterError, match="its start took something else from the base weight of `model.lay"):
        trainer(wrap(pissa(1)), tmp_path).train(resume_from_checkpoint=True)
    again = pissa(0)
    trainer(wrap(again), tmp_path).train(resume_from_checkpoint=True)
    assert same(again, whole)


def test_another_model_of_the_same_plan_is_refused(left: Path, tmp_path: Path) -> None:
    model = lorakit.apply(SPEC, make_llama(hidden_size=32))
    with pytest.raises(lorakit.AdapterError, match=r"q_proj.lora_A.weight` is \(4, 64\), and .* here \(4, 32\)"):
        trainer(model, tmp_path).train(resume_from_checkpoint=str(left))


def test_other_adapters_in_use_are_refused(left: Path, tmp_path: Path) -> None:
    with pytest.raises(lorakit.AdapterError, match="holds the adapters default, and in use is second too"):
        trainer(three(), tmp_path).train(resume_from_checkpoint=str(left))


def test_another_rate_goes_on_and_is_said(left: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = lorakit.apply(f"{SPEC} lr 0.5\noptimizer adamw lr 0.1", make_llama())
    with caplog.at_level(logging.WARNING, "lorakit"):
        trainer(model, tmp_path).train(resume_from_checkpoint=str(left))
    said = [record.getMessage() for record in caplog.records if "another optimizer" in record.getMessage()]
    assert len(said) == 1 and "optimizer adamw lr 0.0002 → adamw lr 0.1, lr none → 0.5" in said[0]


def test_a_checkpoint_without_a_plan_is_taken_as_it_was(left: Path, tmp_path: Path) -> None:
    old = tmp_path / "checkpoint-2"
    shutil.copytree(left, old)
    (old / "model.safetensors").unlink()
    os.link(old / "adapter_model.safetensors", old / "model.safetensors")
    ends = []
    for checkpoint in (left, old):
        model = lorakit.apply(SPEC, make_llama(), seed=7)
        trainer(model, tmp_path / checkpoint.parent.name).train(resume_from_checkpoint=str(checkpoint))
        ends.append(model)
    assert same(*ends)
    other = lorakit.apply("adapt q_proj,v_proj rank 8", make_llama())
    with pytest.raises(lorakit.AdapterError, match=r"is \(4, 64\), and .* here \(8, 64\)"):
        trainer(other, tmp_path).train(resume_from_checkpoint=str(old))


@pytest.mark.parametrize("quant", ["", " quant nf4"])
def test_a_checkpoint_of_nothing_of_the_adapter_is_refused(quant: str, left: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-2"
    shutil.copytree(left, checkpoint)
    (checkpoint / "model.safetensors").unlink()
    for state, message in (
        (make_llama().state_dict(), r"without adapters: it holds `model.layers.0.self_attn.q_proj.weight`"),
        ({"strange": torch.ones(2)}, "nothing that is loaded is this model's: it holds 1 other names, first `strange`"),
    ):
        save_file({name: value.clone() for name, value in state.items()}, checkpoint / "model.safetensors")
        model = lorakit.apply(SPEC + quant, make_llama())
        with pytest.raises(lorakit.AdapterError, match=message):
            trainer(model, tmp_path).train(resume_from_checkpoint=str(checkpoint))


def bf16(seed: int) -> nn.Module:
    """A model that trains in a wider dtype than its own, which holds fewer of its bits."""
    spec = "adapt q_proj rank 2\ntrain model.norm\nstep compute fp32"
    return lorakit.apply(spec, make_llama().bfloat16(), seed=seed)


@pytest.mark.parametrize("make", [llama, bf16])
def test_what_trainer_finds_is_the_state_of_any_holder(make: Callable[[int], nn.Module], tmp_path: Path) -> None:
    from lorakit.artifacts.state_dict import to_adapters

    source, model = make(0), make(1)
    randomize(source)
    state: dict[str, Any] = source.state_dict()
    to_adapters(source, state)
    saves: Any = source
    saves.save_pretrained(tmp_path / "checkpoint-1")
    held = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    assert held.keys() == state.keys() and all(torch.equal(value, state[name]) for name, value in held.items())
    model.load_state_dict(held)
    assert same(model, source)


@pytest.mark.parametrize("make", [llama, three])
def test_states_of_ones_own_load_as_ever(make: Callable[[int], nn.Module]) -> None:
    source, model = make(0), make(1)
    assert not same(source, model)
    model.load_state_dict(source.state_dict())
    assert same(source, model)
    found = make(2).load_state_dict({name: source.state_dict()[name] for name in ("model.norm.weight",)}, strict=False)
    assert "model.embed_tokens.weight" in found.missing_keys


def test_a_damaged_plan_is_refused(left: Path) -> None:
    state = load_file(left / "model.safetensors")
    model = lorakit.apply(SPEC, make_llama())
    for plan in (torch.zeros(3, dtype=torch.uint8), torch.full((3,), 255, dtype=torch.uint8)):
        with pytest.raises(lorakit.AdapterError, match="no plan of `default` that can be read"):
            model.load_state_dict({**state, "lorakit_plan.default": plan}, strict=False)
    del state["lorakit_adapter.default.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]
    with pytest.raises(lorakit.AdapterError, match="lacks 1 tensors of `default`"):
        model.load_state_dict(state, strict=False)


@pytest.mark.parametrize("make", [llama, net])
def test_files_have_the_usual_permissions(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        run = trainer(make(), tmp_path / "run", max_steps=2)
        run.train()
        run.save_model(str(tmp_path / "final"))
    finally:
        os.umask(mask)
    found = {name: (tmp_path / name).stat().st_mode & 0o777 for name in names(tmp_path)}
    assert len(found) > 10 and set(found.values()) == {0o640}


@pytest.mark.parametrize("make", [llama, net])
def test_weights_of_a_whole_model_do_not_stay_beside_an_adapter(
    make: Callable[[], nn.Module], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stale = {"model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"}
    for name in stale:
        (tmp_path / name).write_bytes(b"weights")
    trainer(make(), tmp_path / "run").save_model(str(tmp_path))
    assert not stale & names(tmp_path) and {*FILES, *(f"{name}.old" for name in stale)} < names(tmp_path)
    assert {(tmp_path / f"{name}.old").read_bytes() for name in stale} == {b"weights"}
    assert caplog.text.count("is of a whole model") == 3


def test_the_base_in_its_own_folder_stays(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    make_llama().save_pretrained(tmp_path)
    base = (tmp_path / "model.safetensors").read_bytes()
    model = lorakit.apply(SPEC, AutoModelForCausalLM.from_pretrained(tmp_path))
    trainer(model, tmp_path / "run").save_model(str(tmp_path))
    assert names(tmp_path) > FILES and (tmp_path / "model.safetensors").read_bytes() == base


LATER = """
import sys, torch
sys.path[:0] = {path!r}
import lorakit
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 1)

    def forward(self, x, labels):
        return {{"loss": ((self.inner(x) - labels) ** 2).mean()}}

model = lorakit.apply("adapt inner rank 1", Net())
assert "transformers.trainer" not in sys.modules
from transformers import Trainer, TrainingArguments
arguments = TrainingArguments({folder!r}, max_steps=2, save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True)
rows = [dict(x=torch.ones(4), labels=torch.ones(1))] * 4
Trainer(model, arguments, train_dataset=rows, optimizers=(lorakit.optimizer(model), None)).train()
"""


def test_a_trainer_that_is_imported_after_applying_saves_adapters_alone(tmp_path: Path) -> None:
    import subprocess

    code = LATER.format(path=sys.path, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "checkpoint-2") > FILES
    assert "inner.base_layer.weight" not in load_file(tmp_path / "checkpoint-2" / "model.safetensors")
