"""`lorakit.peft` and `lorakit.peft_config`, against PEFT's own functions and against lorakit without them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lorakit
from helpers import adapters, make_llama, randomize

peft = pytest.importorskip("peft")
QLORA = "adapt q_proj,v_proj rank 4 quant nf4 double"
WITH_NORM = f"{QLORA}\ntrain model.norm"


def adapted(spec: str = QLORA, **arguments: Any) -> Any:
    model = lorakit.apply(spec, make_llama(), **arguments)
    randomize(model)
    return model.eval()


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens).logits


def test_the_view_is_a_peft_model_around_the_model_itself(tokens: torch.Tensor) -> None:
    model = adapted()
    view = lorakit.peft(model)
    assert isinstance(view, peft.PeftModel)
    assert view.get_base_model() is model and view.config is model.config
    assert lorakit.peft(view) is view
    assert torch.equal(logits(view, tokens), logits(model, tokens))
    assert (view.active_adapter, view.active_adapters, list(view.peft_config)) == ("default", ["default"], ["default"])
    assert isinstance(view.peft_config["default"], peft.PeftConfig)
    assert json.dumps(view.peft_config["default"].to_dict())


@pytest.mark.parametrize("spec", ["adapt q_proj,v_proj rank 4", QLORA, WITH_NORM, "adapt q_proj rank 4 quant ao_int8"])
def test_disabled_adapters_leave_the_base_model(spec: str, tokens: torch.Tensor) -> None:
    if "ao_" in spec:
        pytest.importorskip("lorakit_torchao")
    view = lorakit.peft(adapted(spec))
    before, alone = logits(view, tokens), logits(lorakit.apply(spec, make_llama()).eval(), tokens)
    with view.disable_adapter():
        assert view.active_adapters == ["default"]
        assert torch.equal(logits(view, tokens), alone)
    assert torch.equal(logits(view, tokens), before) and not torch.equal(before, alone)


def test_a_backward_pass_goes_through_what_was_disabled_meanwhile(tokens: torch.Tensor) -> None:
    """As a preference loss does it: the policy forward, the reference forward, then one backward."""
    gradients: list[dict[str, Any]] = []
    for disables in (False, True):
        view = lorakit.peft(adapted(WITH_NORM))
        loss = view(input_ids=tokens, labels=tokens).loss
        if disables:
            with torch.no_grad(), view.disable_adapter():
                view(input_ids=tokens)
        loss.backward()
        gradients.append({name: value.grad for name, value in view.named_parameters() if value.requires_grad})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) == 9
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize("spec", [QLORA, WITH_NORM])
def test_a_config_adapts_as_apply_does(spec: str, tokens: torch.Tensor) -> None:
    view = peft.get_peft_model(make_llama(), lorakit.peft_config(spec, seed=3))
    alone = lorakit.apply(spec, make_llama(), seed=3)
    assert isinstance(view, peft.PeftModel) and view.peft_config["default"].seed == 3
    mine, theirs = adapters(view.get_base_model()), adapters(alone)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert torch.equal(logits(view.eval(), tokens), logits(alone.eval(), tokens))


def test_one_config_adapts_one_model_after_another() -> None:
    config = lorakit.peft_config(QLORA)
    first, second = (peft.get_peft_model(make_llama(), config) for _ in range(2))
    assert len(adapters(first)) == len(adapters(second)) == 8


def test_a_saved_view_is_what_lorakit_saves_and_peft_loads(tmp_path: Path, tokens: torch.Tensor) -> None:
    model = adapted("adapt q_proj,v_proj rank 4")
    lorakit.peft(model).save_pretrained(tmp_path / "view")
    lorakit.save(model, tmp_path / "plain")
    for file in (tmp_path / "plain").iterdir():
        assert (tmp_path / "view" / file.name).read_bytes() == file.read_bytes()
    theirs = peft.PeftModel.from_pretrained(make_llama(), tmp_path / "view").eval()
    torch.testing.assert_close(logits(theirs, tokens), logits(model, tokens), rtol=0, atol=1e-5)


def test_peft_reads_and_writes_the_state_of_the_view(tmp_path: Path) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    model = adapted(WITH_NORM)
    view = lorakit.peft(model)
    view.save_pretrained(tmp_path)
    held, written = get_peft_model_state_dict(view), load_file(tmp_path / "adapter_model.safetensors")
    assert held.keys() == written.keys() and all(torch.equal(held[name], written[name]) for name in held)
    other = lorakit.peft(lorakit.apply(WITH_NORM, make_llama()))
    result: Any = set_peft_model_state_dict(other, written)
    assert not result.unexpected_keys
    assert all(torch.equal(value, adapters(model)[name]) for name, value in adapters(other.get_base_model()).items())


def test_the_state_of_the_view_comes_back_whole() -> None:
    view, other = lorakit.peft(adapted(WITH_NORM)), lorakit.peft(lorakit.apply(WITH_NORM, make_llama()))
    assert not any(other.load_state_dict(view.state_dict()))
    assert all(torch.equal(value, adapters(other)[name]) for name, value in adapters(view).items())


def test_merging_and_unloading_give_plain_models(tokens: torch.Tensor) -> None:
    merged = lorakit.peft(adapted()).merge_and_unload()
    assert torch.equal(logits(merged, tokens), logits(lorakit.merge(adapted()), tokens))
    bare = lorakit.peft(adapted()).unload()
    expected = lorakit.merge(lorakit.apply(QLORA, make_llama()))
    assert torch.equal(logits(bare, tokens), logits(expected, tokens))
    assert not any("lorakit" in type(one).__module__ for model in (merged, bare) for one in model.modules())


def test_merging_for_a_while_names_the_weights_as_peft_does(tokens: torch.Tensor) -> None:
    """So that TRL can hand merged weights to vLLM: without `base_layer` and what holds the prefix it is the base."""
    view = lorakit.peft(adapted("adapt q_proj,v_proj rank 4"))
    before = logits(view, tokens)
    view.merge_adapter()
    names = [name.removeprefix("base_model.model.").replace(".base_layer", "") for name, _ in view.named_parameters()]
    assert {name for name in names if view.prefix not in name} == {name for name, _ in make_llama().named_parameters()}
    assert not torch.equal(logits(view, tokens), before)
    view.unmerge_adapter()
    assert torch.equal(logits(view, tokens), before)


def test_counts_are_of_weights_and_not_of_packed_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    model = make_llama()
    total = sum(value.numel() for value in model.parameters())
    view = lorakit.peft(lorakit.apply(QLORA, model))
    trained = sum(value.numel() for value in adapters(model).values())
    assert view.get_nb_trainable_parameters() == (trained, total + trained)
    view.print_trainable_parameters()
    assert capsys.readouterr().out.startswith(f"trainable params: {trained:,} || all params: {total + trained:,}")


def test_adapters_go_by_their_names(tokens: torch.Tensor, tmp_path: Path) -> None:
    view = lorakit.peft(adapted())
    first = logits(view, tokens)
    view.add_adapter("other", lorakit.peft_config("adapt q_proj rank 2"))
    assert view.active_adapters == ["default"] and torch.equal(logits(view, tokens), first)
    view.set_adapter("other")
    randomize(view, seed=9)
    second = logits(view, tokens)
    assert view.active_adapter == "other" and set(view.peft_config) == {"default", "other"}
    assert all(".base_layer" not in name for name in adapters(view)) and len(adapters(view)) == 4
    view.set_adapter("default", inference_mode=True)
    assert not adapters(view)
    view.set_requires_grad("default")
    assert len(adapters(view)) == 8
    view.set_adapter("default", inference_mode=True)
    view.set_adapter("default")
    assert len(adapters(view)) == 8
    rows = [["default", "other", "__base__"][index] for index in range(3)]
    with torch.no_grad():
        mixed = view(input_ids=tokens, adapter_names=rows).logits
    torch.testing.assert_close(mixed[1], second[1], rtol=0, atol=1e-5)
    view.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_config.json").is_file() and (tmp_path / "other" / "plan.json").is_file()
    view.load_adapter(tmp_path / "other", "third")
    assert view.active_adapter == "default" and set(view.peft_config) == {"default", "other", "third"}
    view.set_adapter("third")
    assert torch.equal(logits(view, tokens), second)
    view.delete_adapter("third")
    assert view.active_adapters == ["default"]


STARTED, DIRECTED = "adapt q_proj rank 4 init pissa quant nf4", "adapt q_proj rank 4 method dora"


@pytest.mark.parametrize("spec", [QLORA, WITH_NORM, STARTED, DIRECTED])
def test_a_reference_answers_as_its_adapter_did(spec: str, tokens: torch.Tensor) -> None:
    """TRL adds `ref` of the config of `default`, and uses it between a forward and its backward."""
    if spec in (STARTED, DIRECTED):
        pytest.importorskip("lorakit_methods")
    model = adapted(spec)
    view = lorakit.peft(model)
    view.add_adapter("ref", view.peft_config["default"])
    before = logits(view, tokens)
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=1.0)
    for _ in range(2):
        loss = view(input_ids=tokens, labels=tokens).loss
        view.set_adapter("ref")
        assert view.active_adapter == "ref" and torch.equal(logits(view, tokens), before)
        view.set_adapter("default")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = logits(view, tokens)
    assert not torch.equal(after, before)
    view.set_adapter("ref")
    assert torch.equal(logits(view, tokens), before)
    view.set_adapter("default")
    assert torch.equal(logits(view, tokens), after)


def test_a_reference_is_saved_and_loaded_as_it_was(tmp_path: Path, tokens: torch.Tensor) -> None:
    view = lorakit.peft(adapted())
    view.add_adapter("ref", view.peft_config["default"])
    before = logits(view, tokens)
    randomize(view, seed=8)
    after = logits(view, tokens)
    view.save_pretrained(tmp_path)
    fresh = lorakit.peft(lorakit.apply(QLORA, make_llama()).eval())
    fresh.add_adapter("ref", fresh.peft_config["default"])
    fresh.load_adapter(tmp_path, "default", is_trainable=True)
    fresh.load_adapter(tmp_path / "ref", "ref")
    assert torch.equal(logits(fresh, tokens), after)
    fresh.set_adapter("ref")
    assert torch.equal(logits(fresh, tokens), before)


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("adapt q_proj,v_proj rank 4 alpha 64 quant nf4 double", "had alpha"),
        ("adapt q_proj,v_proj rank 8 quant nf4 double", "had rank 4, and has 8"),
        ("adapt q_proj,v_proj rank 4", "had quant nf4 double"),
        ("adapt q_proj,k_proj rank 4 quant nf4 double", "had no method, and has lora now"),
    ],
)
def test_going_on_with_another_plan_is_refused(spec: str, word: str, tmp_path: Path) -> None:
    lorakit.peft(adapted()).save_pretrained(tmp_path)
    view = lorakit.peft(adapted(spec))
    before = adapters(view)
    with pytest.raises(lorakit.AdapterError, match=word):
        view.load_adapter(tmp_path, "default", is_trainable=True)
    assert all(torch.equal(value, before[name]) for name, value in adapters(view).items())


def test_what_is_no_adapter_of_lorakits_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(lorakit.ModelError, match="has no adapters"):
        lorakit.peft(make_llama())
    with pytest.raises(lorakit.SpecError):
        lorakit.peft_config("adopt q_proj")
    view = lorakit.peft(adapted())
    with pytest.raises(lorakit.ModelError, match=r"takes lorakit.peft_config\(SPEC\), not LoraConfig"):
        view.add_adapter("other", peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(lorakit.ModelError, match="already"):
        view.add_adapter("default", lorakit.peft_config(QLORA))
    with pytest.raises(lorakit.ModelError, match="no adapter is called `none`"):
        view.set_adapter("none")
    with pytest.raises(lorakit.ModelError, match="is adapted already"):
        peft.get_peft_model(adapted(), lorakit.peft_config(QLORA))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(lorakit.ModelError, match="pip install peft"):
        lorakit.peft(adapted())


def plain(status: Any, *own: str) -> dict[str, Any]:
    """Return a status without what each library calls its own."""
    return {name: value for name, value in vars(status).items() if name not in own}


@pytest.mark.filterwarnings("ignore:Already unmerged")
def test_the_status_is_what_peft_says(tmp_path: Path) -> None:
    for number, spec in enumerate(("adapt q_proj,v_proj rank 4", "adapt q_proj,k_proj rank 2")):
        lorakit.save(adapted(spec), tmp_path / str(number))
    theirs = peft.PeftModel.from_pretrained(make_llama(), tmp_path / "0")
    theirs.load_adapter(tmp_path / "1", "other")
    mine = lorakit.peft(lorakit.load(tmp_path / "0", make_llama()))
    mine.load_adapter(tmp_path / "1", "other")

    def expect_same() -> None:
        layers, others = ({one.name: one for one in view.get_layer_status()} for view in (mine, theirs))
        assert layers.keys() == others.keys() and len(layers) == 6
        for name in layers:
            assert plain(layers[name], "module_type") == plain(others[name], "module_type")
        own = ("adapter_model_type", "peft_types", "total_params", "trainable_params")
        assert plain(mine.get_model_status(), *own) == plain(theirs.get_model_status(), *own)

    for active in ("default", "other"):
        for view in (mine, theirs):
            view.set_adapter(active)
        expect_same()
    for view in (mine, theirs):
        view.merge_adapter()
    expect_same()
    for view in (mine, theirs):
        view.unmerge_adapter()
    with mine.disable_adapter(), theirs.disable_adapter():
        assert mine.get_model_status().enabled is theirs.get_model_status().enabled is False


def test_the_status_of_what_peft_has_not() -> None:
    view = lorakit.peft(adapted(WITH_NORM))
    view.add_adapter("ref", view.peft_config["default"])
    status = view.get_model_status()
    assert (status.base_model_type, status.peft_types) == ("LlamaForCausalLM", {"default": "LORAKIT", "ref": "LORAKIT"})
    assert status.requires_grad == {"default": True, "ref": False}
    assert (status.trainable_params, status.total_params) == view.get_nb_trainable_parameters()
    # what trains in full is stored as it was
    assert status.quantization_backend == "irregular" and status.available_adapters == ["default", "ref"]
    assert {one.quantization_backend for one in view.get_layer_status()} == {"nf4 double", None}
    norm = view.get_layer_status()[-1]
    assert (norm.name, norm.module_type, norm.available_adapters) == (
        "model.model.norm",
        "LlamaRMSNorm",
        [*status.devices],
    )


def test_plain_modules_have_a_view_too() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    view = peft.get_peft_model(net, lorakit.peft_config("adapt @linear rank 2"))
    x = torch.randn(3, 8)
    assert torch.equal(view(x), net(x)) and len(adapters(view)) == 4


def test_lorakits_own_functions_take_the_view(tmp_path: Path) -> None:
    model = adapted(WITH_NORM)
    view = lorakit.peft(model)
    groups = lorakit.optimizer(view).param_groups
    assert sum(len(group["params"]) for group in groups) == len(adapters(model))
    assert lorakit.summary(view) == lorakit.summary(model)
    assert lorakit.adapters(view).names == ("default",)
    lorakit.save(view, tmp_path / "adapter")
    assert lorakit.merge(view) is model
