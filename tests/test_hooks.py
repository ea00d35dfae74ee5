"""The hook of every moment, called by a plugin with nothing that a third party lacks; and plugins that misbehave."""

from __future__ import annotations

import copy
import importlib.metadata
import inspect
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from plugged import one, plugins_of, run
from safetensors.torch import save_file
from torch import nn

import lorakit
from lorakit import plugins as composition
from lorakit.hooks import LayerShape, LowRankPart, ModelReference, Plan, PlanEntry, Plugins, Renamed, specs
from lorakit.plugins import load_plugins


def test_lorakit_load_model() -> None:
    def load(reference: ModelReference) -> nn.Module | None:
        return one() if reference.text == "mine://one" else None

    plugins = plugins_of(lorakit_load_model=load)
    assert lorakit.plan(lorakit.parse("adapt 0 rank 2"), "mine://one", plugins=plugins).added == 28


class Doubler(nn.Module):
    """A layer of a class that nobody knows: y = 2 x Wᵀ."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x @ self.matrix.T


class DoublerLoRA(nn.Module):
    def __init__(self, base_layer: nn.Module, lora_A: nn.Parameter, lora_B: nn.Parameter) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.strength = 1.0
        self.lora_A, self.lora_B = lora_A, lora_B

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.strength * (x @ self.lora_A.T @ self.lora_B.T)


def describe(module: nn.Module) -> LayerShape | None:
    return LayerShape("doubler", 4, 4) if isinstance(module, Doubler) else None


def adapt(module: nn.Module, entry: PlanEntry, parameters: Any) -> nn.Module | None:
    return DoublerLoRA(module, **parameters) if isinstance(module, Doubler) else None


def test_lorakit_describe_module() -> None:
    with pytest.raises(lorakit.PlanError, match="no adapter fits `0`, a Doubler"):
        lorakit.plan("adapt 0 rank 2", nn.Sequential(Doubler()))
    plugins = plugins_of(lorakit_describe_module=describe)
    assert lorakit.plan(lorakit.parse("adapt 0 rank 2"), nn.Sequential(Doubler()), plugins=plugins).added == 16


def test_lorakit_describe_parameter() -> None:
    def describe_parameter(module: nn.Module, name: str) -> LayerShape | None:
        return LayerShape("stack", 4, 4, stack=1) if isinstance(module, Doubler) else None

    model = run(
        "adapt matrix rank 2", nn.Sequential(Doubler()), plugins_of(lorakit_describe_parameter=describe_parameter)
    )
    x = torch.randn(3, 4)
    assert torch.equal(model(x), 2 * x) and model[0].parametrizations.matrix[0].lora_A.shape == (2, 4)


def test_lorakit_adapt_module() -> None:
    plugins = plugins_of(lorakit_describe_module=describe, lorakit_adapt_module=adapt)
    model = run("adapt 0 rank 2 dtype fp32", nn.Sequential(Doubler()), plugins)
    x = torch.randn(3, 4)
    assert isinstance(model[0], DoublerLoRA) and torch.equal(model(x), 2 * x)


def test_lorakit_before_apply() -> None:
    def refuse(model: nn.Module, plan: Plan) -> None:
        raise lorakit.ModelError(f"{type(model).__name__} is not for {plan.entries[0].path}")

    model = one()
    with pytest.raises(lorakit.ModelError, match="Sequential is not for 0"):
        run("adapt 0 rank 2", model, plugins_of(lorakit_before_apply=refuse))
    assert type(model[0]) is nn.Linear and model[0].weight.requires_grad


def test_lorakit_convert_module() -> None:
    def convert(module: nn.Module) -> nn.Module | None:
        return nn.Linear(4, 4, bias=False) if isinstance(module, Doubler) else None

    plugins = plugins_of(lorakit_convert_module=convert)
    model = run("adapt 1 rank 2", nn.Sequential(Doubler(), nn.Linear(4, 4)), plugins)
    assert type(model[0]) is nn.Linear


@dataclass(frozen=True)
class Before2:
    """A library that called `head` what is `1` now, and had two weights one by one where `0` is."""

    weights: frozenset[str]

    def former(self, weight: str) -> str:
        return weight.replace("1.", "head.")

    def today(self, former: str) -> Renamed | None:
        if found := re.fullmatch(r"half\.(\d)\.weight", former):
            return Renamed("0.weight", "half.*.weight", int(found[1]))
        name = former.replace("head.", "1.")
        return Renamed(name) if name in self.weights else None


class Before2InParts(Before2):
    def joined(self, parts: Sequence[LowRankPart], stack: int) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
        first, second = sorted(parts, key=lambda part: part.renamed.index)
        lora_B = torch.block_diag(first.lora_B, second.lora_B)
        return {"0.weight": (torch.cat([first.lora_A, second.lora_A]), lora_B)}


def test_lorakit_former_names(tmp_path: Path) -> None:
    def named(kind: type[Before2]) -> Plugins:
        return plugins_of(lorakit_former_names=lambda model, weights: kind(frozenset(weights)))

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4)), torch.randn(3, 8)
    plugins = named(Before2InParts)
    plan = lorakit.plan(lorakit.parse("adapt head rank 2", plugins=plugins), model, plugins=plugins)
    assert [entry.path for entry in plan.entries] == ["1"]
    # an adapter as PEFT saves it, by the names of the release before
    halves = [(torch.randn(1, 8), torch.randn(3, 1)) for _ in range(2)]
    head = (torch.randn(1, 6), torch.randn(4, 1))
    pairs = {"half.0": halves[0], "half.1": halves[1], "head": head}
    tensors = {
        f"base_model.model.{path}.lora_{letter}.weight": tensor
        for path, pair in pairs.items()
        for letter, tensor in zip("AB", pair, strict=True)
    }
    folder = tmp_path / "theirs"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 3, "target_modules": ["half", "head"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with torch.no_grad():
        weight = model[0].weight + 3 * torch.cat([B @ A for A, B in halves])
        hidden = nn.functional.linear(x, weight, model[0].bias)
        right = nn.functional.linear(hidden, model[1].weight + 3 * head[1] @ head[0], model[1].bias)
    with pytest.raises(lorakit.AdapterError, match=r"does not say how \(`joined`\)"):
        lorakit.load(folder, copy.deepcopy(model), plugins=named(Before2))
    torch.testing.assert_close(lorakit.load(folder, model, plugins=plugins)(x), right)


def test_lorakit_plan_ready() -> None:
    def halve(plan: Plan) -> Plan:
        return replace(plan, notes=(*plan.notes, "seen"))

    plan = lorakit.plan(lorakit.parse("adapt 0 rank 2"), one(), plugins=plugins_of(lorakit_plan_ready=halve))
    assert plan.notes[-1] == "seen"


def test_figures_are_those_of_the_entries_that_a_plugin_leaves() -> None:
    def shrink(plan: Plan) -> Plan:
        first = plan.entries[0]
        assert first.adapter is not None
        # a plan is counted once: what a plugin sees has no figures that it could take for the last
        assert plan.memory.peak == first.bytes.during_training == 0 and plan.trainable == 1024
        settings = replace(first.adapter.settings, rank=1)
        # without a table of parameters, lorakit asks the method for the one that these settings give
        adapter = replace(first.adapter, settings=settings, parameters=())
        return replace(plan, entries=(replace(first, adapter=adapter, quant=None),))

    text = "adapt 0 rank 4 quant nf4\nadapt 1 rank 4"
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    plugins = plugins_of(lorakit_plan_ready=shrink)
    changed = lorakit.plan(lorakit.parse(text), model, plugins=plugins)
    # bf16, since the rule asked for a quantized base; AdamW keeps two moments, and counts the steps of each tensor
    assert (changed.added, changed.memory.adapters, changed.memory.optimizer) == (128, 256, 2 * (256 + 4))
    assert changed.memory.weights == changed.memory.weights_before == 2 * 64 * 64 * 4
    assert [rule.modules for rule in changed.rules] == [1, 0]
    # promises are held against these figures
    assert lorakit.plan(lorakit.parse(f"{text}\nrequire trainable < 2%"), model, plugins=plugins).added == 128
    with pytest.raises(lorakit.PlanError, match="`trainable` is 12.500%"):
        lorakit.plan(f"{text}\nrequire trainable < 2%", model)


def test_a_plan_made_elsewhere_is_counted_again() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    plan = lorakit.plan("adapt 0,1 rank 4 quant nf4", model, batch=2)
    read = Plan.from_json(plan.to_json())
    assert lorakit.plan(read, model) == plan
    assert lorakit.plan(replace(read, entries=read.entries[:1]), model) == lorakit.plan(
        replace(plan, entries=plan.entries[:1]), model
    )
    half = lorakit.plan(replace(read, entries=read.entries[:1]), model)
    assert 2 * half.memory.optimizer == plan.memory.optimizer and [rule.modules for rule in half.rules] == [1]
    with pytest.raises(lorakit.PlanError, match="for another model: it decides `1`, which Sequential lacks"):
        lorakit.plan(read, nn.Sequential(nn.Linear(64, 64)))


def test_lorakit_estimate_memory() -> None:
    plain = lorakit.plan("adapt 0 rank 2", one())
    plugins = plugins_of(lorakit_estimate_memory=lambda entry: 1000)
    assert lorakit.plan(lorakit.parse("adapt 0 rank 2"), one(), plugins=plugins).memory.peak == plain.memory.peak + 1000


def test_lorakit_model_ready() -> None:
    seen: list[int] = []
    run("adapt 0 rank 2", one(), plugins_of(lorakit_model_ready=lambda model, plan: seen.append(plan.added)))
    assert seen == [28]


def test_lorakit_model_merged() -> None:
    seen: list[type] = []
    plugins = plugins_of(lorakit_model_merged=lambda model: seen.append(type(model[0])))
    lorakit.merge(run("adapt 0 rank 2", one(), plugins))
    assert seen == [nn.Linear]


def test_lorakit_before_save(tmp_path: Path) -> None:
    def card(model: nn.Module, folder: Path) -> None:
        (folder / "README.md").write_text("a model card")

    plugins = plugins_of(lorakit_before_save=card)
    folder = lorakit.save(run("adapt 0 rank 2", one(), plugins), tmp_path / "adapter")
    assert (folder / "README.md").read_text() == "a model card"


def test_lorakit_after_load(tmp_path: Path) -> None:
    seen: list[Path] = []
    plugins = plugins_of(lorakit_after_load=lambda model, folder: seen.append(folder))
    folder = lorakit.save(run("adapt 0 rank 2", one(), plugins), tmp_path / "adapter")
    lorakit.load(folder, one(), plugins=plugins)
    assert seen == [folder]


def test_every_hook_has_a_test_and_a_docstring() -> None:
    hooks = [name for name, value in vars(specs).items() if inspect.isfunction(value) and name.startswith("lorakit_")]
    assert len(hooks) >= 15
    tests = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    for name in hooks:
        assert f"def test_{name}(" in tests, name
        assert inspect.getdoc(getattr(specs, name)), name


def broken(*_: Any, **__: Any) -> None:
    raise ZeroDivisionError("oops")


@pytest.mark.parametrize(
    "hook", ["lorakit_plan_ready", "lorakit_model_ready", "lorakit_describe_module", "lorakit_estimate_memory"]
)
def test_a_plugin_that_raises_is_named(hook: str) -> None:
    arguments = inspect.signature(getattr(specs, hook)).parameters
    function = eval(f"lambda {', '.join(arguments)}: broken()", {"broken": broken})
    with pytest.raises(lorakit.PluginError, match=rf"plugin sample 1.0 failed in {hook}: ZeroDivisionError: oops"):
        run("adapt 0 rank 2", one(), plugins_of(**{hook: function}))


def test_two_plugins_with_one_name_are_both_named() -> None:
    @dataclass(frozen=True)
    class Other:
        name: ClassVar[str] = "nf4"

    with pytest.raises(
        lorakit.PluginError, match=r"two plugins add `nf4` .*lorakit \(quantizers\).* and .*sample 1.0|sample 1.0 and"
    ):
        plugins_of(lorakit_quantizers=lambda: [Other])


def test_a_misspelled_hook_is_an_error() -> None:
    with pytest.raises(lorakit.PluginError, match="lorakit_quantisers"):
        plugins_of(lorakit_quantisers=lambda: [])


def test_a_hook_with_an_unknown_argument_is_an_error() -> None:
    with pytest.raises(lorakit.PluginError, match="sample 1.0"):
        plugins_of(lorakit_plan_ready=lambda plan, colour: None)


def test_a_distribution_that_does_not_import_is_named_when_its_words_are_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_plugin.py").write_text("1 / 0")
    info = tmp_path / "broken_plugin-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 2.5\n")
    (info / "entry_points.txt").write_text("[lorakit]\nit = broken_plugin\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    plugins = load_plugins(importlib.metadata.entry_points(group="lorakit"))
    assert [(failure.distribution, failure.reason) for failure in plugins.failures] == [
        ("broken-plugin 2.5", "ZeroDivisionError: division by zero")
    ]
    assert run("adapt 0 rank 2", one(), plugins)
    from lorakit.language.statements import PluginCall

    with pytest.raises(lorakit.PluginError, match=r"no quantizer is called `theirs`.*broken-plugin 2.5 did not load"):
        plugins.quantizer(PluginCall("theirs"))


def test_the_manager_is_a_value() -> None:
    assert composition.default_plugins() is composition.default_plugins()
    assert "half" not in composition.default_plugins().quantizers
