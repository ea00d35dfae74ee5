"""`eva` against PEFT's, and against the principal components of all inputs at once."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora.config import EvaConfig
from peft_twin import assert_same, core_of, in_peft, start_eva, stored_for_peft, tensors_of, train
from torch import Tensor, nn

import lorakit
from helpers import make_llama
from lorakit.testing import Check, initializer_checks
from lorakit_methods import EVA


@pytest.mark.parametrize("check", [*initializer_checks(EVA), *initializer_checks(EVA, rho=1)], ids=str)
def test_conformance(check: Check) -> None:
    check()


def net() -> nn.Module:
    """Return three layers, the inputs of which vary in more and in fewer directions."""
    torch.manual_seed(0)
    layers = OrderedDict(a=nn.Linear(12, 8), t=nn.Tanh(), b=nn.Linear(8, 10), u=nn.Sigmoid(), c=nn.Linear(10, 4))
    return nn.Sequential(layers).eval()


def data(rows: int = 64, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 12, generator=generator) * torch.linspace(2, 0.2, 12) + 0.5


def wide() -> nn.Module:
    """Return three layers whose rows are whole blocks, so that bitsandbytes holds them as lorakit does."""
    torch.manual_seed(0)
    layers = OrderedDict(a=nn.Linear(64, 128), t=nn.Tanh(), b=nn.Linear(128, 64), u=nn.Sigmoid(), c=nn.Linear(64, 48))
    # what saturates varies in more directions
    layers["a"].weight.data.mul_(20)  # type: ignore[operator]
    return nn.Sequential(layers).eval()


def wide_data() -> Tensor:
    inputs = torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
    return inputs * 0.9 ** torch.arange(64) + 0.5


def stored_in_peft(ours: nn.Module) -> nn.Module:
    """Return the plain model with its layers as they are stored in ours."""
    model: Any = wide()
    for name in "abc":
        plain = model.get_submodule(name)
        setattr(model, name, stored_for_peft(core_of(ours.get_submodule(name)), plain, plain.weight.detach()))
    model.is_loaded_in_4bit = any(hasattr(one, "quant_type") for one in model.modules())
    return model.requires_grad_(False)


@pytest.mark.parametrize("rho", [1, 2])
@pytest.mark.parametrize("quant", ["", "nf4 double", "hqq"])
@pytest.mark.parametrize("observed", ["as stored", "before it is stored"])
def test_it_moves_ranks_starts_and_trains_as_in_peft(observed: str, quant: str, rho: int) -> None:
    """Inputs are observed of what the model computes at that time: of stored weights if it is quantized first."""
    inputs, model = wide_data(), wide()
    rule = f"adapt a,b,c rank 4 alpha 8 dtype fp32 init eva(rho={rho})"
    if quant and observed == "as stored":
        model, quant = lorakit.apply(f"quantize a,b,c {quant}", model), ""
        ours = lorakit.apply(rule, model, name="second", calibration=[inputs])
    else:
        ours = lorakit.apply(rule + f" quant {quant}" * bool(quant), model, calibration=[inputs])
    settings = EvaConfig(rho=rho)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["a", "b", "c"], init_lora_weights="eva", eva_config=settings)
    theirs = in_peft(stored_in_peft(ours), config)
    start_eva(theirs, inputs, wide() if quant else None)
    start, own = tensors_of(ours), get_peft_model_state_dict(theirs)
    assert start.keys() == own.keys()
    for name, tensor in start.items():
        torch.testing.assert_close(tensor, own[name], rtol=1e-5, atol=1e-5)
        own[name].copy_(tensor)
    name = "second" if "second" in lorakit.adapters(ours).names else "default"
    ranks = {entry.path: entry.adapter.settings.rank for entry in lorakit.adapters(ours).plan(name).entries}  # type: ignore[union-attr]
    assert sum(filter(None, ranks.values())) == 12 and (rho > 1) == (set(ranks.values()) != {4})
    assert_same(ours, theirs, inputs)
    train(ours, inputs)
    train(theirs, inputs)
    assert_same(ours, theirs, inputs)


def test_batch_after_batch_finds_the_components_of_all_inputs_at_once() -> None:
    inputs, eva = data(200, seed=4), EVA()
    observed = None
    for batch in inputs.split(30):
        observed = eva.observe(batch.unflatten(0, (-1, 5)), observed)
    assert observed is not None and observed.count == 200
    centred = (inputs - inputs.mean(dim=0)).double()
    _, values, right = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(observed.directions.norm(dim=1).double(), values, rtol=1e-4, atol=1e-4)
    cosines = (observed.directions.double() / values[:, None] * right).sum(dim=1).abs()
    torch.testing.assert_close(cosines, torch.ones(12).double(), rtol=1e-4, atol=1e-4)
    shares = (values.square() / values.square().sum()).tolist()
    assert observed.explained == pytest.approx(shares, rel=1e-4)


def test_what_is_kept_is_bounded_and_still_leads() -> None:
    eva, observed = EVA(components=3), None
    inputs = data(400, seed=5) * torch.tensor([9.0, 7.0, 5.0, *[0.1] * 9])
    for batch in inputs.split(50):
        observed = eva.observe(batch, observed)
    assert observed is not None and observed.directions.shape == (3, 12)
    _, _, right = torch.linalg.svd(inputs - inputs.mean(dim=0), full_matrices=False)
    unit = observed.directions / observed.directions.norm(dim=1, keepdim=True)
    torch.testing.assert_close((unit @ right[:3].T).abs(), torch.eye(3), rtol=1e-3, atol=1e-3)


def test_a_layer_that_explains_nothing_is_left_without_an_adapter(tmp_path: Path) -> None:
    """The inputs of `b` are constant: every rank goes to `a`."""
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(a=nn.Linear(12, 8), b=nn.Linear(8, 4)))
    model.a.weight.data.zero_()  # type: ignore[union-attr, operator]
    inputs = data()
    adapted: Any = lorakit.apply("adapt a,b rank 3 dtype fp32 init eva(rho=2)", model, calibration=[inputs])
    assert type(adapted.b) is nn.Linear and adapted.a.rank == 6
    assert lorakit.summary(adapted).added_parameters == 6 * (12 + 8)
    wanted = adapted(inputs)
    folder = lorakit.save(adapted, tmp_path / "adapter")
    torch.manual_seed(0)
    base = nn.Sequential(OrderedDict(a=nn.Linear(12, 8), b=nn.Linear(8, 4)))
    base.a.weight.data.zero_()  # type: ignore[union-attr, operator]
    assert torch.equal(lorakit.load(folder, base)(inputs), wanted)


def test_other_layers_and_missing_data_are_refused() -> None:
    with pytest.raises(lorakit.PlanError, match="needs calibration data"):
        lorakit.apply("adapt a rank 2 init eva", net())
    convolution = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(lorakit.PlanError, match="`0` is a Conv2d"):
        lorakit.apply("adapt 0 rank 2 init eva", convolution, calibration=[torch.randn(1, 3, 8, 8)])


@pytest.mark.parametrize("quant", ["", "quant nf4 double"])
def test_a_llama_read_from_disk_starts_by_its_inputs(quant: str, tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    make_llama(attention_bias=True).save_pretrained(folder)
    tokens = torch.randint(0, 128, (4, 16), generator=torch.Generator().manual_seed(1))
    batches = [{"input_ids": tokens[:2]}, {"input_ids": tokens[2:]}]
    text = f"adapt @attention rank 4 dtype fp32 init eva {quant}"
    model = lorakit.apply(text, folder, calibration=batches).eval()
    ranks = [entry.adapter.settings.rank for entry in lorakit.adapters(model).plan("default").entries if entry.adapter]
    assert sum(filter(None, ranks)) == 8 * 4 and len(set(ranks)) > 1
    train_logits = model(tokens).logits
    saved = lorakit.save(model, tmp_path / "adapter")
    assert torch.equal(lorakit.load(saved, folder)(tokens).logits, train_logits)
    if not quant:
        theirs = PeftModel.from_pretrained(make_llama(attention_bias=True).eval(), saved)
        torch.testing.assert_close(theirs(tokens).logits, train_logits, rtol=1e-5, atol=1e-5)
