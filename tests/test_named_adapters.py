"""Several adapters on one model: names, factors, rows, swapping, removal, and merging for a while."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

import lorakit
from helpers import make_gpt2, make_llama, randomize
from test_experts import mixtral

TOKENS = torch.randint(0, 60, (3, 9), generator=torch.Generator().manual_seed(1))
FIRST, SECOND = "adapt q_proj,v_proj rank 4 alpha 8", "adapt @mlp,q_proj rank 2 scaling rslora"


def logits(model: nn.Module, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(tokens).logits
    return result


def saved(base: nn.Module, spec: str, folder: Path, seed: int) -> Path:
    """Write an adapter that changes what the model computes."""
    model = lorakit.apply(spec, copy.deepcopy(base), seed=seed)
    randomize(model, seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad and "lora" not in name:
                value.add_(0.1 * seed)
    return lorakit.save(model, folder)


@pytest.fixture
def base() -> nn.Module:
    return make_llama().eval()


@pytest.fixture
def folders(base: nn.Module, tmp_path: Path) -> dict[str, Path]:
    return {"a": saved(base, FIRST, tmp_path / "a", 1), "b": saved(base, SECOND, tmp_path / "b", 2)}


@pytest.fixture
def both(base: nn.Module, folders: dict[str, Path]) -> nn.Module:
    model = copy.deepcopy(base)
    for name, folder in folders.items():
        lorakit.load(folder, model, name=name)
    return model


def alone(base: nn.Module, folder: Path) -> torch.Tensor:
    return logits(lorakit.load(folder, copy.deepcopy(base)))


def test_each_name_answers_as_if_it_were_alone(base: nn.Module, both: nn.Module, folders: dict[str, Path]) -> None:
    adapters = lorakit.adapters(both)
    assert adapters.names == ("a", "b") and dict(adapters.used) == {"b": 1.0}
    for name in ("b", "a", "b"):
        adapters.use(name)
        assert torch.equal(logits(both), alone(base, folders[name]))
    assert (adapter := adapters.plan("a").entries[0].adapter) and adapter.settings.rank == 4


def test_weighted_combination_adds_the_changes(base: nn.Module, both: nn.Module, folders: dict[str, Path]) -> None:
    lorakit.adapters(both).use({"a": 0.7, "b": -0.3})
    expected = copy.deepcopy(base)
    with torch.no_grad():
        for name, share in (("a", 0.7), ("b", -0.3)):
            merged = lorakit.merge(lorakit.load(folders[name], copy.deepcopy(base)))
            for path, weight in expected.named_parameters():
                weight.add_(share * (merged.get_parameter(path) - base.get_parameter(path)))
    torch.testing.assert_close(logits(both), logits(expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(lorakit.merge(both)), logits(expected), rtol=1e-5, atol=1e-5)


def test_peft_agrees_on_each_and_on_rows(base: nn.Module, both: nn.Module, folders: dict[str, Path]) -> None:
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), str(folders["a"]), adapter_name="a").eval()
    theirs.load_adapter(str(folders["b"]), adapter_name="b")
    adapters = lorakit.adapters(both)
    for name in ("a", "b"):
        theirs.set_adapter(name)
        adapters.use(name)
        torch.testing.assert_close(logits(both), logits(theirs), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        expected = theirs(TOKENS, adapter_names=["a", "__base__", "b"]).logits
    with adapters.rows(["a", None, "b"]):
        torch.testing.assert_close(logits(both), expected, rtol=1e-5, atol=1e-5)
    assert dict(adapters.used) == {"b": 1.0}


def test_rows_generate_each_with_its_own_adapter(both: Any) -> None:
    adapters = lorakit.adapters(both)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    with adapters.rows(["a", "b", None]):
        together = both.generate(TOKENS, **options)
    for row, name in enumerate(("a", "b", None)):
        adapters.use({name: 1.0} if name else {})
        assert torch.equal(both.generate(TOKENS[row : row + 1], **options)[0], together[row])


def test_rows_train_each_its_own_adapter(both: Any) -> None:
    with lorakit.adapters(both).rows(["a", "a", None]):
        for parameter in both.parameters():
            parameter.requires_grad_(parameter.dim() == 2)
        both(TOKENS, labels=TOKENS).loss.backward()
    state = both.lorakit_state.named
    assert all(module.lora_B.grad.any() for module in state["a"].modules.values())
    # in no row, so not in the sum at all
    assert all(module.lora_B.grad is None for module in state["b"].modules.values())


def test_rows_that_a_module_cannot_see_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = lorakit.apply("adapt @experts,q_proj rank 2", mixtral())
    with (
        pytest.raises(lorakit.ModelError, match=r"experts\.gate_up_proj`, whose weight serves all rows"),
        lorakit.adapters(model).rows(["default", None]),
    ):
        model(TOKENS[:2])
    model = lorakit.apply("adapt q_proj,v_proj rank 2", make_llama())
    with (
        pytest.raises(lorakit.ModelError, match=r"`model\.layers\.0\.self_attn\.q_proj` cannot .* 2 rows"),
        lorakit.adapters(model).rows(["default", None]),
    ):
        model(TOKENS)
    assert dict(lorakit.adapters(model).used) == {"default": 1.0}


def test_disabled_is_the_base_and_comes_back(base: nn.Module, both: nn.Module) -> None:
    before, training = logits(both), [value.requires_grad for value in both.parameters()]
    with pytest.raises(KeyError), lorakit.adapters(both).disabled():
        assert torch.equal(logits(both), logits(base))
        raise KeyError
    assert torch.equal(logits(both), before)
    assert [value.requires_grad for value in both.parameters()] == training


@pytest.mark.parametrize("quant", ["", " quant nf4 double"])
def test_what_is_trained_in_full_goes_with_its_adapter(base: nn.Module, quant: str, tmp_path: Path) -> None:
    folders = {
        name: saved(base, f"adapt q_proj rank 2{quant}; train @norm,lm_head", tmp_path / name, seed)
        for name, seed in (("a", 1), ("b", 2))
    }
    model = copy.deepcopy(base)
    for name, folder in folders.items():
        lorakit.load(folder, model, name=name)
    adapters = lorakit.adapters(model)
    stored = (
        logits(lorakit.apply(f"quantize @linear {quant.removeprefix(' quant ')}", copy.deepcopy(base)))
        if quant
        else logits(base)
    )
    for name in ("a", "b", "a"):
        adapters.use(name)
        assert torch.equal(logits(model), alone(base, folders[name]))
        with adapters.disabled():
            assert torch.equal(logits(model), stored)
    # values that do not stand in the model are saved all the same
    lorakit.save(model, tmp_path / "again", name="b")
    assert torch.equal(alone(base, tmp_path / "again"), alone(base, folders["b"]))
    with pytest.raises(lorakit.ModelError, match="both trained `.*` in full"):
        adapters.use({"a": 1.0, "b": 1.0})
    with pytest.raises(lorakit.ModelError, match="factor 1, not 0.5"):
        adapters.use({"a": 0.5})
    assert torch.equal(logits(model), alone(base, folders["a"]))


def test_only_what_is_used_trains(both: Any) -> None:
    adapters = lorakit.adapters(both)
    adapters.use("a")
    before = {name: value.clone() for name, value in both.named_parameters()}
    optimizer = lorakit.optimizer(both, lr=1e-2)
    both.train()
    both(TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()
    changed = {id(value) for name, value in both.named_parameters() if not torch.equal(value, before[name])}
    own = {
        id(value)
        for module in both.lorakit_state.named["a"].modules.values()
        for value in (module.lora_A, module.lora_B)
    }
    assert changed == own


def test_save_asks_which_where_several_are_in_use(both: nn.Module, tmp_path: Path) -> None:
    lorakit.adapters(both).use({"a": 1.0, "b": 1.0})
    with pytest.raises(lorakit.ModelError, match="adapters a, b and 2 of them are in use: give a name"):
        lorakit.save(both, tmp_path / "out")
    lorakit.save(both, tmp_path / "out", name="a")
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "a" / "adapter_model.safetensors"
    ).read_bytes()


def test_a_name_is_taken_once_and_known(base: nn.Module, both: nn.Module, folders: dict[str, Path]) -> None:
    with pytest.raises(lorakit.ModelError, match="adapted already, under the name `a`"):
        lorakit.load(folders["a"], both, name="a")
    with pytest.raises(lorakit.ModelError, match=r"no adapter is called `c`; there are: a, b"):
        lorakit.adapters(both).use("c")
    with pytest.raises(lorakit.ModelError, match="has no adapters"):
        lorakit.adapters(base)


def test_a_second_adapter_never_changes_the_base_of_the_first(base: nn.Module) -> None:
    model = lorakit.apply(FIRST, copy.deepcopy(base))
    with pytest.raises(lorakit.ModelError, match="quantizes `model.layers.0.self_attn.q_proj`, which would change"):
        lorakit.apply("adapt q_proj rank 2 quant nf4", model, name="second")
    assert lorakit.adapters(model).names == ("default",)
    model = lorakit.apply(f"{FIRST} quant nf4 double", copy.deepcopy(base))
    packed = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    with pytest.raises(lorakit.PlanError, match="holds its weight as nf4 double"):
        lorakit.apply("adapt q_proj rank 2 quant fp4", model, name="second")
    lorakit.apply("adapt q_proj rank 2 quant nf4 double", model, name="second")
    assert all(
        torch.equal(value, packed[name.replace("base_layer.base_layer", "base_layer")])
        for name, value in model.named_parameters()
        if "weight_" in name
    )


def test_removal_leaves_the_others(base: nn.Module, both: nn.Module, folders: dict[str, Path]) -> None:
    adapters = lorakit.adapters(both)
    adapters.remove("a")
    assert adapters.names == ("b",) and torch.equal(logits(both), alone(base, folders["b"]))
    with pytest.raises(lorakit.ModelError, match="`b` is the only adapter"):
        adapters.remove("b")


@pytest.mark.parametrize("make, target", [(mixtral, "@experts,q_proj"), (make_gpt2, "c_attn,wte,c_fc")])
def test_every_kind_of_layer_takes_several(make, target: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    base = make().eval()
    folders = {
        name: saved(base, f"adapt {target} rank {rank}", tmp_path / name, rank) for name, rank in (("a", 1), ("b", 2))
    }
    model = copy.deepcopy(base)
    for name, folder in folders.items():
        lorakit.load(folder, model, name=name)
    adapters = lorakit.adapters(model)
    for name in ("a", "b"):
        adapters.use(name)
        assert torch.equal(logits(model), alone(base, folders[name]))
    adapters.use({"a": 1.0, "b": 1.0})
    together = logits(model)
    with adapters.merged():
        torch.testing.assert_close(logits(model), together, rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(model), together)
    adapters.remove("b")
    assert torch.equal(logits(model), alone(base, folders["a"]))
    merged = lorakit.merge(model)
    # parameters are where they were, so that the model can be planned for again
    assert list(merged.state_dict()) == list(base.state_dict())
    assert (
        lorakit.plan(f"adapt {target} rank 1", merged).entries == lorakit.plan(f"adapt {target} rank 1", base).entries
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quant", ["", " quant nf4 double"])
def test_merging_for_a_while_comes_back_bit_for_bit(dtype: torch.dtype, quant: str) -> None:
    model = lorakit.apply(f"adapt q_proj,down_proj rank 4{quant}", make_llama().to(dtype).eval())
    randomize(model)
    before, state = logits(model), {name: value.clone() for name, value in model.state_dict().items()}
    adapters = lorakit.adapters(model)
    with adapters.merged() as report:
        assert report.modules == 4 and (report.max_error > 0) == (dtype is torch.bfloat16)
        torch.testing.assert_close(logits(model).float(), before.float(), rtol=0.05, atol=0.05)
        assert not torch.equal(logits(model), before) or dtype is torch.float32
        for call in (adapters.merge, lambda: adapters.use("default"), lambda: lorakit.merge(model)):
            with pytest.raises(lorakit.ModelError, match=r"unmerge\(\)` first"):
                call()
    assert torch.equal(logits(model), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(lorakit.ModelError, match="not merged"):
        adapters.unmerge()


def test_requantizing_states_what_it_costs(caplog: pytest.LogCaptureFixture) -> None:
    from lorakit.layers.quantized_linear import QuantizedLinear

    model = lorakit.apply("adapt q_proj rank 4 quant nf4 double", make_llama().eval())
    randomize(model)
    path = "model.layers.0.self_attn.q_proj"
    adapter: Any = model.get_submodule(path)
    exact = adapter.exact_weight(adapter.base_layer.weight.float())
    with caplog.at_level("INFO", "lorakit"):
        merged = lorakit.merge(model, requantize=True)
    layer = merged.get_submodule(path)
    assert isinstance(layer, QuantizedLinear) and "lora" not in " ".join(merged.state_dict())
    error = float((layer.weight - exact).abs().max())
    assert error > 0 and "quantizing again cost" in caplog.text
    assert float(caplog.text.partition("cost ")[2].partition(" at most")[0]) >= error * 0.99


def test_swapping_changes_no_module_and_compiles_nothing_again(base: nn.Module, tmp_path: Path) -> None:
    from torch._dynamo.testing import CompileCounter

    model = lorakit.apply("adapt q_proj,v_proj rank 8 alpha 8", copy.deepcopy(base)).eval()
    counter = CompileCounter()
    compiled: Any = torch.compile(model, backend=counter)
    logits(compiled)
    frames = counter.frame_count
    assert frames > 0
    for seed, rank, alpha in ((1, 8, 8), (2, 4, 16), (3, 1, 3)):
        folder = saved(base, f"adapt q_proj,v_proj rank {rank} alpha {alpha}", tmp_path / str(seed), seed)
        lorakit.adapters(compiled).swap("default", folder)
        torch.testing.assert_close(logits(compiled), alone(base, folder), rtol=1e-5, atol=1e-5)
    assert counter.frame_count == frames
    # what was swapped in is what is saved
    lorakit.save(compiled, tmp_path / "again")
    torch.testing.assert_close(alone(base, tmp_path / "again"), logits(model), rtol=1e-5, atol=1e-5)


def test_swapping_stacks_fills_up_their_rank(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = mixtral().eval()
    folder = saved(base, "adapt @experts rank 2 alpha 6", tmp_path / "a", 1)
    model = lorakit.apply("adapt @experts rank 5", copy.deepcopy(base))
    lorakit.adapters(model).swap("default", folder)
    torch.testing.assert_close(logits(model.eval()), alone(base, folder), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("adapt q_proj rank 2", "do not adapt the same modules: `model.layers.0.self_attn.v_proj`"),
        ("adapt q_proj,v_proj rank 8", "it has rank 8, and there is room for rank 4: apply one of rank 8 first"),
    ],
)
def test_what_cannot_be_swapped_in_changes_nothing(base: nn.Module, spec: str, message: str, tmp_path: Path) -> None:
    model = lorakit.apply(FIRST, copy.deepcopy(base))
    randomize(model)
    before = logits(model)
    with pytest.raises(lorakit.AdapterError, match=message):
        lorakit.adapters(model).swap("default", saved(base, spec, tmp_path / "x", 1))
    assert torch.equal(logits(model), before)
