"""Accelerate's own `prepare`, `save_state` and `load_state` around adapted models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

import lorakit
from helpers import adapters, make_llama, randomize, run_page

SPEC = "adapt q_proj,v_proj rank 4 dropout 0.3 quant nf4\ntrain model.norm\noptimizer adamw lr 0.01"
ROWS = torch.randint(0, 128, (16, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def one_accelerator() -> Iterator[None]:
    """Forget what Accelerate holds for the whole process."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    yield
    for shared in (AcceleratorState, GradientState, PartialState):
        shared._reset_state()


def accelerator(**given: Any) -> Any:
    made = Accelerator(cpu=True, **given)
    lorakit.checkpoint_adapters(made)
    return made


def run(folder: Path, *, goes_on: bool = False, compiled: bool = False) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train for four steps of two batches and save after the second, or go on from there."""
    torch.manual_seed(7)
    own = accelerator(gradient_accumulation_steps=2)
    model: Any = lorakit.apply(SPEC, make_llama())
    model = torch.compile(model, backend="eager") if compiled else model
    optimizer = lorakit.optimizer(model)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=4)
    data: Any = torch.utils.data.DataLoader(ROWS, batch_size=2)  # type: ignore[arg-type]
    model, optimizer, schedule, data = own.prepare(model, optimizer, schedule, data)
    model.train()
    batches, losses = iter(data), []
    if goes_on:
        assert len(list(islice(batches, 4))) == 4
        own.load_state(folder)
    for count, batch in enumerate(batches, 5 if goes_on else 1):
        with own.accumulate(model):
            loss = model(input_ids=batch, labels=batch).loss
            own.backward(loss)
            own.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if count == 4 and not goes_on:
            own.save_state(folder)
    return losses, adapters(model)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_state_is_the_adapter_and_goes_on_bit_for_bit(compiled: bool, tmp_path: Path) -> None:
    losses, trained = run(tmp_path / "state", compiled=compiled)
    again, resumed = run(tmp_path / "state", goes_on=True, compiled=compiled)
    assert again == losses[4:] and len(again) == 4
    assert trained.keys() == resumed.keys() and all(torch.equal(resumed[name], trained[name]) for name in trained)
    held = load_file(tmp_path / "state" / "model.safetensors")
    assert not any("embed_tokens" in name or "weight_packed" in name for name in held)
    # what trains and its plan
    assert sum(one.nbytes for one in held.values()) < 8_000
    assert not list((tmp_path / "state").glob("**/.*"))


def test_the_folder_in_a_state_is_an_adapter_of_lorakit_and_of_peft(tokens: torch.Tensor, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    own = accelerator()
    model = own.prepare(lorakit.apply("adapt q_proj rank 2", make_llama()))
    randomize(model)
    own.save_state(tmp_path)
    expected = model.eval()(tokens).logits
    assert {path.name for path in (tmp_path / "adapter").iterdir()} >= {"plan.json", "adapter_config.json"}
    ours: Any = lorakit.load(tmp_path / "adapter", make_llama())
    assert torch.equal(ours(tokens).logits, expected)
    theirs = peft.PeftModel.from_pretrained(make_llama(), tmp_path / "adapter").eval()
    torch.testing.assert_close(theirs(tokens).logits, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ("adapt q_proj rank 2 alpha 64", "alpha 2, and has 64 now"),
        ("adapt k_proj rank 2", "q_proj` is decided by it alone"),
        ("adapt q_proj rank 2\nquantize k_proj nf4", "k_proj` is decided by the other alone"),
    ],
)
def test_the_state_of_another_plan_is_refused(other: str, difference: str, tmp_path: Path) -> None:
    own = accelerator()
    own.prepare(lorakit.apply("adapt q_proj rank 2", make_llama()))
    own.save_state(tmp_path)
    own.free_memory()
    model = own.prepare(lorakit.apply(other, make_llama()))
    before = adapters(model)
    with pytest.raises(lorakit.AdapterError, match=difference):
        own.load_state(tmp_path)
    assert all(torch.equal(before[name], value) for name, value in adapters(model).items())
    # rates may be others
    own.free_memory()
    own.prepare(lorakit.apply("adapt q_proj rank 2 lr 0.5", make_llama()))
    own.load_state(tmp_path)


def test_a_model_that_is_not_adapted_is_saved_as_ever(tmp_path: Path) -> None:
    own = accelerator()
    plain, adapted = own.prepare(nn.Linear(4, 4), lorakit.apply("adapt q_proj rank 2", make_llama()))
    randomize(adapted)
    own.save_state(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == {"weight", "bias"}
    kept, trained = plain.weight.detach().clone(), adapters(adapted)
    with torch.no_grad():
        for one in (*plain.parameters(), *(value for value in adapted.parameters() if value.requires_grad)):
            one.zero_()
    own.load_state(tmp_path)
    assert torch.equal(plain.weight, kept)
    assert all(torch.equal(trained[name], value) for name, value in adapters(adapted).items())


def test_states_of_whole_models_load_still(tmp_path: Path) -> None:
    own: Any = Accelerator(cpu=True)
    model = own.prepare(lorakit.apply("adapt q_proj rank 2", make_llama()))
    randomize(model)
    own.save_state(tmp_path)
    assert not (tmp_path / "adapter").exists()
    trained = adapters(model)
    randomize(model, seed=9)
    lorakit.checkpoint_adapters(own)
    own.load_state(tmp_path)
    assert all(torch.equal(trained[name], value) for name, value in adapters(model).items())


class Valued(nn.Module):
    """A model and a head beside it, which trains too and which no adapter holds."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make_llama()
        self.value = nn.Linear(64, 1)
        self.norm = nn.BatchNorm1d(1)


def test_what_trains_beside_the_adapters_is_in_the_state(tmp_path: Path) -> None:
    own = accelerator()
    model = Valued()
    lorakit.apply("adapt q_proj rank 2", model.model)
    model.model.model.norm.requires_grad_(True)
    randomize(model)
    model.norm(torch.randn(8, 1))
    model = own.prepare(model)
    own.save_state(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    assert {"value.weight", "norm.running_mean", "model.model.norm.weight"} <= held.keys()
    assert "model.model.embed_tokens.weight" not in held
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for value in (*filter(lambda one: one.requires_grad, model.parameters()), *model.norm.buffers()):
            value.zero_()
    own.load_state(tmp_path)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize(
    "spec",
    [
        "adapt q_proj rank 2 dropout 0.1\ntrain lm_head",
        "adapt embed_tokens rank 2",
        "adapt q_proj,v_proj rank 2 method vera",
        "adapt q_proj rank 2 init pissa\nstep compute bf16",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_have_several_names(spec: str, is_tied: bool, tmp_path: Path) -> None:
    own = accelerator()
    model = own.prepare(lorakit.apply(spec, make_llama(tie_word_embeddings=is_tied)))
    with torch.no_grad():
        for value in (one for one in model.parameters() if one.requires_grad):
            value.add_(torch.randn_like(value))
    own.save_state(tmp_path)
    own.free_memory()
    again = own.prepare(lorakit.apply(spec, make_llama(tie_word_embeddings=is_tied)))
    own.load_state(tmp_path)
    held = again.state_dict()
    assert all(torch.equal(held[name], value) for name, value in model.state_dict().items())
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(lorakit.ModelError, match="damaged or cut short"):
        own.load_state(tmp_path)


def test_several_adapters_each_have_a_folder(tmp_path: Path) -> None:
    own = accelerator()
    model = lorakit.apply("adapt q_proj rank 2", make_llama())
    lorakit.apply("adapt v_proj rank 2\ntrain model.norm", model, name="poet")
    model = own.prepare(model)
    randomize(model)
    own.save_state(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"adapter", "adapter-poet"}
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    randomize(model, seed=3)
    lorakit.adapters(model).use("default")
    own.load_state(tmp_path)
    lorakit.adapters(model).use("poet")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    own.free_memory()
    own.prepare(lorakit.apply("adapt q_proj rank 2", make_llama()))
    with pytest.raises(lorakit.AdapterError, match="holds the adapters default, poet, and the model has default"):
        own.load_state(tmp_path)


def test_a_damaged_state_changes_nothing(tmp_path: Path) -> None:
    model = lorakit.apply("adapt q_proj rank 2", make_llama())
    own = accelerator()
    own.save_state(tmp_path / "empty")
    state: dict[str, Any] = model.state_dict()
    from lorakit.artifacts.state_dict import to_adapters

    to_adapters(model, state)
    before = adapters(model)
    cut: list[Mapping[str, Any]] = [
        {name: value for name, value in state.items() if "layers.1" not in name},
        {name: value[:-1] for name, value in state.items()},
        {name: value for name, value in state.items() if "plan" not in name},
    ]
    randomize(model)
    changed = adapters(model)
    for one in cut:
        with pytest.raises(lorakit.AdapterError, match="this checkpoint"):
            model.load_state_dict(one)
    assert all(torch.equal(changed[name], value) for name, value in adapters(model).items())
    model.load_state_dict(state)
    # the state is the model's own tensors, as any is
    assert all(torch.equal(changed[name], value) for name, value in adapters(model).items())
    assert before.keys() == changed.keys()


def test_the_page(llama_folder: Path, tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    run_page("Accelerate", llama_folder, batches=torch.utils.data.DataLoader(rows))  # type: ignore[arg-type]
    for folder in ("adapter", "state/adapter"):
        assert lorakit.load(folder, str(llama_folder))
