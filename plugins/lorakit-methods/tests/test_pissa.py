"""`pissa` against PEFT's, and against the decomposition itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft_twin import LAYERS, core_of, in_peft, inputs_of, model_of, train
from torch import Tensor, nn

import lorakit
from lorakit.testing import Check, initializer_checks
from lorakit_methods import PiSSA

RULE = "rank 4 alpha 8 dtype fp32 init pissa"


@pytest.mark.parametrize("check", [*initializer_checks(PiSSA), *initializer_checks(PiSSA, iterations=3)], ids=str)
def test_conformance(check: Check) -> None:
    check()


def matrix_of(model: nn.Module, kind: str) -> Tensor:
    """Return what the module `layer` stores as (outputs, inputs)."""
    weight: Tensor = core_of(model.get_submodule("layer")).weight.detach()  # type: ignore[operator]
    return weight.T if kind in ("embedding", "linear_transposed") else weight.flatten(1)


@pytest.mark.parametrize("kind", list(LAYERS))
def test_the_base_gives_up_just_the_principal_part(kind: str) -> None:
    inputs, plain = inputs_of(kind), model_of(kind)
    model = lorakit.apply(f"adapt layer {RULE}", model_of(kind))
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), plain(inputs), rtol=1e-5, atol=1e-5)
    left, values, right = torch.linalg.svd(matrix_of(plain, kind).double(), full_matrices=False)
    rest = (left[:, 4:] * values[4:]) @ right[4:]
    torch.testing.assert_close(matrix_of(model, kind).double(), rest, rtol=1e-5, atol=1e-5)


def test_subspace_iteration_comes_near_the_whole_decomposition() -> None:
    whole, quick = (
        lorakit.apply(f"adapt layer {RULE}{options}", model_of("linear")) for options in ("", "(iterations=30)")
    )
    products = [layer.lora_B @ layer.lora_A for layer in (whole.layer, quick.layer)]  # type: ignore[union-attr, operator]
    torch.testing.assert_close(*products, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("quant", ["nf4 double", "hqq"])
def test_a_quantized_base_stores_what_is_left(quant: str) -> None:
    import bitsandbytes.functional as bnb

    model = lorakit.apply(f"adapt layer {RULE} quant {quant}", model_of("linear"))
    plain = model_of("linear")
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["layer"], init_lora_weights="pissa")
    theirs = in_peft(plain, config).base_model.model.layer
    stored: Any
    if quant.startswith("nf4"):
        packed, state = bnb.quantize_4bit(theirs.base_layer.weight.data, quant_type="nf4", compress_statistics=True)
        stored = bnb.dequantize_4bit(packed, state)
    else:
        other = lorakit.apply("quantize layer hqq", _with_weight(theirs.base_layer.weight))
        stored = other.get_submodule("layer").weight
    found = model.get_submodule("layer.base_layer").weight
    # the residuals differ in their last bits, which may round to another level here and there
    assert float((found - stored).abs().gt(1e-4).float().mean()) < 0.01
    assert float((found - stored).norm() / stored.norm()) < 0.05


def _with_weight(weight: Tensor) -> nn.Module:
    model = model_of("linear")
    model.layer.weight = nn.Parameter(weight.detach().clone())  # type: ignore[union-attr]
    return model


def test_peft_refuses_the_folder_by_name_and_lorakit_loads_it(tmp_path: Path) -> None:
    inputs = inputs_of("linear")
    model = lorakit.apply(f"adapt layer {RULE} quant nf4 double", model_of("linear"))
    train(model, inputs)
    folder = lorakit.save(model, tmp_path / "adapter")
    with pytest.raises(Exception, match="LORAKIT_LORA_ON_CHANGED_BASE"):
        PeftModel.from_pretrained(model_of("linear"), folder)
    with torch.no_grad():
        assert torch.equal(lorakit.load(folder, model_of("linear"))(inputs), model(inputs))


def test_a_quantized_base_has_no_part_left_to_take() -> None:
    stored = lorakit.apply("quantize layer nf4", model_of("linear"))
    before = copy.deepcopy(stored)
    with pytest.raises(lorakit.ModelError, match="adapted already|name"):
        lorakit.apply(f"adapt layer {RULE}", stored)
    with pytest.raises(lorakit.PlanError, match="start from plain weights"):
        lorakit.apply(f"adapt layer {RULE}", stored, name="second")
    with torch.no_grad():
        assert torch.equal(stored(inputs_of("linear")), before(inputs_of("linear")))


@pytest.mark.parametrize("text", ["pissa(iterations=-1)", "eva(rho=0.5)", "eva(components=0)"])
def test_bad_options_are_refused(text: str) -> None:
    with pytest.raises(lorakit.SpecError, match="must"):
        lorakit.parse(f"adapt q rank 2 init {text}")


def test_another_base_than_that_of_the_start_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from click.testing import CliRunner

    from helpers import make_llama
    from lorakit.cli.main import app

    adapter = lorakit.save(lorakit.apply(f"adapt q_proj {RULE}", make_llama()), tmp_path / "adapter")
    for seed, count in ((0, 0), (1, 1)):
        base = tmp_path / str(seed)
        make_llama(seed).save_pretrained(base)
        for use in (
            lambda base=base: lorakit.load(adapter, base),
            lambda seed=seed: lorakit.load(adapter, make_llama(seed)),
            lambda base=base: CliRunner().invoke(
                app, ["merge", str(adapter), str(base), "-o", f"{base}-merged"], catch_exceptions=False
            ),
        ):
            caplog.clear()
            use()
            assert caplog.text.count("does not hold what the start of its adapter took from it") == count
