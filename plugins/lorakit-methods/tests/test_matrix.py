"""Every method and start, over every form of the base, on every kind of layer: as PEFT computes it, or refused."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, VeraConfig, get_peft_model_state_dict
from peft_twin import (
    LAYERS,
    assert_same,
    base_for_peft,
    core_of,
    in_peft,
    inputs_of,
    model_of,
    original,
    start_eva,
    tensors_of,
    train,
)
from torch import Tensor, nn
from unrolled import Unrolled, as_linear

import lorakit

# PEFT warns of what these cells are about: a weight that lies transposed, a start that it knows for some layers alone
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


@dataclass(frozen=True)
class Way:
    """A rule on the module `layer`, PEFT's config for it, and the tensors that PEFT itself starts alike, a regex."""

    rule: str
    config: Callable[[], Any]
    starts: str = "^$"


def _lora(**fields: Any) -> Callable[[], Any]:
    return lambda: LoraConfig(r=3, lora_alpha=6, target_modules=["layer"], **fields)


WAYS: Mapping[str, Way] = {
    "dora": Way("rank 3 alpha 6 method dora", _lora(use_dora=True), "magnitude"),
    "dora-orthogonal": Way("rank 3 alpha 6 method dora init orthogonal", _lora(use_dora=True)),
    "ia3": Way("method ia3", lambda: IA3Config(target_modules=["layer"], feedforward_modules=[]), "."),
    "ia3-feedforward": Way(
        "method ia3(feedforward=true)",
        lambda: IA3Config(target_modules=["layer"], feedforward_modules=["layer"]), ".",
    ),
    "vera": Way("rank 8 method vera", lambda: VeraConfig(r=8, target_modules=["layer"], d_initial=0.1), "lambda"),
    "pissa": Way("rank 3 alpha 6 init pissa", _lora(init_lora_weights="pissa"), "."),
    "eva": Way("rank 3 alpha 6 init eva", _lora(init_lora_weights="eva"), "."),
}  # fmt: skip
LORA = "rank 2 dtype fp32"
BASES = ("", "quant nf4 double", "quant hqq")
# what a cell without a meaning says; every other is compared
NO_MATRIX = "no linear layer: quantizers take matrices"
UNDEFINED: Mapping[tuple[str, str, str], str] = {
    **dict.fromkeys(itertools.product(WAYS, BASES[1:], ("conv2d", "embedding")), NO_MATRIX),
    # a vector over the outputs of a lookup is no part of the paper, nor of PEFT
    ("ia3", "", "embedding"): "`ia3` has no adapter for `layer`",
    ("ia3-feedforward", "", "embedding"): "`ia3` has no adapter for `layer`",
    # PEFT's VeRA, as the paper's, is for linear layers
    ("vera", "", "conv2d"): "`vera` has no adapter for `layer`",
    ("vera", "", "embedding"): "`vera` has no adapter for `layer`",
    # PEFT starts these otherwise, and warns
    ("eva", "", "conv2d"): "`eva` looks at what goes into linear layers",
    ("eva", "", "embedding"): "`eva` looks at what goes into linear layers",
}  # fmt: skip
CELLS = list(itertools.product(WAYS, BASES, LAYERS))
DEFINED = [pytest.param(*cell, id="-".join(filter(None, cell))) for cell in CELLS if cell not in UNDEFINED]


def applied(way: str, base: str, kind: str, name: str = "default", model: nn.Module | None = None) -> nn.Module:
    text = f"adapt layer {WAYS[way].rule} dtype fp32 {base}"
    return lorakit.apply(text, model or model_of(kind), name=name, calibration=[inputs_of(kind)])


def started_by_peft(way: str, kind: str, ours: nn.Module) -> tuple[Any, Callable[[dict[str, Tensor]], Any]]:
    """Return PEFT's model after its own start, over the base that lorakit stored, and how tensors are named there."""
    config = WAYS[way].config()
    if way == "pissa":
        return _pissa_by_peft(kind, ours, config)
    theirs = in_peft(base_for_peft(kind, ours), config)
    if way == "eva":
        start_eva(theirs, inputs_of(kind))
    return theirs.eval(), dict


def _pissa_by_peft(kind: str, ours: nn.Module, config: Any) -> tuple[Any, Callable[[dict[str, Tensor]], Any]]:
    """Start from the plain weight, as PEFT must; where the base is quantized, that is what is left, quantized."""
    is_matrix = kind.startswith("linear")
    theirs = in_peft(model_of(kind) if is_matrix else Unrolled(kind), config)
    # what is left is what PEFT leaves
    plain = applied("pissa", "", kind)
    left = original(core_of(plain.get_submodule("layer")))
    residual = original(theirs.base_model.model.layer.base_layer)
    torch.testing.assert_close(left.flatten(1), residual, rtol=1e-5, atol=1e-5)
    if core_of(ours.get_submodule("layer")).__class__ is core_of(plain.get_submodule("layer")).__class__:
        return theirs.eval(), dict if is_matrix else as_linear
    start = get_peft_model_state_dict(theirs)
    # and it is stored as the same quantizer stores it
    base = base_for_peft(kind, ours, left)
    other = in_peft(base, LoraConfig(r=3, lora_alpha=6, target_modules=["layer"]))
    own = get_peft_model_state_dict(other)
    for name, tensor in start.items():
        own[name].copy_(tensor)
    return other.eval(), dict


@pytest.mark.parametrize(("way", "base", "kind"), DEFINED)
def test_it_starts_and_trains_as_in_peft(way: str, base: str, kind: str) -> None:
    inputs, ours = inputs_of(kind), applied(way, base, kind)
    theirs, named = started_by_peft(way, kind, ours)
    start, own = named(tensors_of(ours)), get_peft_model_state_dict(theirs)
    assert start.keys() == own.keys()
    for name, tensor in start.items():
        if re.search(WAYS[way].starts, name):
            torch.testing.assert_close(tensor, own[name], rtol=1e-5, atol=1e-5)
        own[name].copy_(tensor)
    before = ours(inputs).detach()
    assert_same(ours, theirs, inputs, named)
    train(ours, inputs)
    train(theirs, inputs)
    assert_same(ours, theirs, inputs, named)
    # training did something
    assert float((ours(inputs) - before).abs().max()) > 1e-3


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("way", "base", "kind"), DEFINED)
def test_it_is_saved_loaded_and_merged(way: str, base: str, kind: str, tmp_path: Path) -> None:
    inputs, ours = inputs_of(kind), applied(way, base, kind)
    train(ours, inputs)
    with torch.no_grad():
        wanted = ours(inputs)
        folder = lorakit.save(ours, tmp_path / "adapter")
        assert torch.equal(lorakit.load(folder, model_of(kind))(inputs), wanted)
        if way == "pissa":
            with pytest.raises(KeyError, match="LORAKIT_LORA_ON_CHANGED_BASE"):
                PeftModel.from_pretrained(model_of(kind), folder)
        else:
            theirs = PeftModel.from_pretrained(base_for_peft(kind, ours), folder).eval()
            same(theirs(inputs), wanted)
            if not base:
                same(theirs.merge_and_unload()(inputs), wanted)
        merged = lorakit.merge(ours)
        same(merged(inputs), wanted)
    assert type(merged.get_submodule("layer")) is type(model_of(kind).get_submodule("layer"))


@pytest.mark.parametrize("above", [True, False], ids=["under-lora", "on-lora"])
@pytest.mark.parametrize(("way", "base", "kind"), DEFINED)
def test_it_stacks_with_lora_and_serves_rows(way: str, base: str, kind: str, above: bool, tmp_path: Path) -> None:
    if way == "pissa" and not above:
        # what it would take is under another adapter, which learned on all of the weight
        model = lorakit.apply(f"adapt layer {LORA} {base}", model_of(kind))
        with pytest.raises(lorakit.LorakitError, match="takes a part from its weight"):
            lorakit.apply(f"adapt layer {WAYS[way].rule}", model, name="second")
        return
    inputs = inputs_of(kind)
    mine, lora = applied(way, base, kind), lorakit.apply(f"adapt layer {LORA} {base}", model_of(kind))
    for model in (mine, lora):
        train(model, inputs)
    folders = {"mine": lorakit.save(mine, tmp_path / "mine"), "lora": lorakit.save(lora, tmp_path / "lora")}
    model = model_of(kind)
    for name in ("mine", "lora") if above else ("lora", "mine"):
        lorakit.load(folders[name], model, name=name)
    adapters = lorakit.adapters(model)
    with torch.no_grad():
        with adapters.disabled():
            plain = model(inputs)
        if way == "pissa":
            same(plain, applied(way, base, kind).eval()(inputs))
        else:
            same(plain, nn.Sequential(core_of(mine.get_submodule("layer")), nn.Tanh())(inputs))
        adapters.use("lora")
        beside = model(inputs)
        # a quantized rest with what was taken beside it is nearer to the weight than the weight quantized
        assert (way, bool(base)) == ("pissa", True) or torch.allclose(beside, lora(inputs), rtol=1e-5, atol=1e-5)
        with adapters.rows(["mine", "lora", None, "mine"]):
            rows = model(inputs)
        alone = {"mine": mine(inputs), "lora": beside, None: plain}
        for row, asked in enumerate(("mine", "lora", None, "mine")):
            same(rows[row], alone[asked][row])
        adapters.use({"mine": 1.0, "lora": 0.5})
        both = model(inputs)
        assert float((both - alone["mine"]).abs().max()) > 1e-3
        with adapters.merged():
            same(model(inputs), both)
        same(model(inputs), both)
        same(lorakit.merge(model)(inputs), both)


@pytest.mark.parametrize("cell", UNDEFINED, ids=lambda cell: "-".join(filter(None, cell)))
def test_what_has_no_meaning_is_refused_and_leaves_the_model_as_it_was(cell: tuple[str, str, str]) -> None:
    way, base, kind = cell
    model = model_of(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(lorakit.PlanError, match=re.escape(UNDEFINED[cell])):
        applied(way, base, kind, model=model)
    assert type(model.get_submodule("layer")) is type(model_of(kind).get_submodule("layer"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_cells_that_are_refused_are_cells() -> None:
    assert set(UNDEFINED) <= set(CELLS)
