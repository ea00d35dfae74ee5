"""Every hook, called for real by a plugin that has nothing which a third party lacks; and plugins that misbehave."""

from __future__ import annotations

import importlib.metadata
import inspect
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import lorakit
from lorakit import plugins as composition
from lorakit.hooks import (
    LayerShape,
    Linear,
    ModelReference,
    ParameterPlan,
    Plan,
    PlanEntry,
    Plugins,
    QuantizedWeight,
    Quantizer,
    Settings,
    StartContext,
    Storage,
    hookimpl,
    specs,
)
from lorakit.plugins import load_plugins


def plugins_of(**functions: Any) -> Plugins:
    """Return the built-ins and one plugin made of these functions."""
    module = types.SimpleNamespace(**{name: hookimpl(function) for name, function in functions.items()})
    return load_plugins(modules={"sample 1.0": module})


def run(text: str, model: nn.Module, plugins: Plugins) -> nn.Module:
    return lorakit.apply(lorakit.parse(text, plugins=plugins), model, plugins=plugins)


def one() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6))


@dataclass(frozen=True)
class Half:
    """Stores weights in 16 bits."""

    name: ClassVar[str] = "half"
    scale: float = field(default=1.0, metadata={"help": "multiplies the weight"})

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        return QuantizedWeight({"half": (weight * self.scale).half()}, tuple(weight.shape), weight.dtype)  # type: ignore[arg-type]

    def dequantize(self, quantized: QuantizedWeight) -> Tensor:
        return quantized.tensors["half"].to(quantized.dtype)

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        return 16.0


def test_lorakit_quantizers() -> None:
    model = run("adapt 0 rank 2 quant half(scale=2)", one(), plugins_of(lorakit_quantizers=lambda: [Half]))
    torch.testing.assert_close(model[0].base_layer.weight, 2 * one()[0].weight.detach(), rtol=1e-3, atol=1e-3)
    assert lorakit.summary(model).modules[0].bits_per_weight == 16


def test_a_quantizer_needs_no_product_of_its_own_and_all_else() -> None:
    @dataclass(frozen=True)
    class Inherits(Quantizer):
        """Stores weights as they are."""

        name: ClassVar[str] = "inherits"

        def quantize(self, weight: Tensor) -> QuantizedWeight:
            return QuantizedWeight({"same": weight.clone()}, (weight.shape[0], weight.shape[1]), weight.dtype)

        def dequantize(self, quantized: QuantizedWeight) -> Tensor:
            return quantized.tensors["same"]

        def bits_per_weight(self, shape: tuple[int, int]) -> float:
            return 32.0

    model, x = run("quantize 0 inherits", one(), plugins_of(lorakit_quantizers=lambda: [Inherits])), torch.randn(2, 8)
    torch.testing.assert_close(model(x), one()(x))
    # what the protocol leaves empty is missing
    incomplete = type("Incomplete", (Quantizer,), {"name": "incomplete", "quantize": Inherits.quantize})
    with pytest.raises(lorakit.PluginError, match=r"`incomplete` has no method `dequantize\(quantized\)`"):
        plugins_of(lorakit_quantizers=lambda: [dataclass(frozen=True)(incomplete)])


def test_lorakit_initializers() -> None:
    @dataclass(frozen=True)
    class FromWeight:
        """Starts A with rows of the base weight."""

        name: ClassVar[str] = "rows"

        def initialize(self, lora_A: Tensor, lora_B: Tensor, context: Any) -> None:
            lora_A.copy_(context.weight()[: lora_A.shape[0]])
            lora_B.fill_(context.scaling)

    model = run("adapt 0 rank 2 alpha 6 init rows", one(), plugins_of(lorakit_initializers=lambda: [FromWeight]))
    assert torch.equal(model[0].lora_A, one()[0].weight[:2]) and bool((model[0].lora_B == 3).all())


def test_an_initializer_that_raises_is_named_with_the_module() -> None:
    @dataclass(frozen=True)
    class Picky:
        """Takes even ranks only."""

        name: ClassVar[str] = "picky"

        def initialize(self, lora_A: Tensor, lora_B: Tensor, context: Any) -> None:
            raise ValueError("the rank must be even")

    model = one()
    with pytest.raises(
        lorakit.PluginError,
        match="initializer `picky` of sample 1.0 failed on `0` at rank 3: ValueError: the rank must be even",
    ):
        run("adapt 0 rank 3 init picky", model, plugins_of(lorakit_initializers=lambda: [Picky]))
    assert type(model[0]) is nn.Linear


def test_lorakit_optimizers() -> None:
    @dataclass(frozen=True)
    class Rprop:
        """Resilient backpropagation."""

        name: ClassVar[str] = "rprop"
        default_lr: ClassVar[float] = 0.125

        def build(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
            return torch.optim.Rprop([{"params": group["params"], "lr": group["lr"]} for group in groups])

        def state(self, shape: tuple[int, ...], dtype: str) -> Mapping[str, tuple[tuple[int, ...], str]]:
            return {"odd": ((3,), "float16"), "flags": ((1,), "bool")}

    plugins = plugins_of(lorakit_optimizers=lambda: [Rprop])
    model = run("adapt 0 rank 2\noptimizer rprop", one(), plugins)
    optimizer = lorakit.optimizer(model)
    assert isinstance(optimizer, torch.optim.Rprop) and optimizer.param_groups[0]["lr"] == 0.125
    assert (
        lorakit.plan(
            lorakit.parse("adapt 0 rank 2\noptimizer rprop", plugins=plugins), one(), plugins=plugins
        ).memory.optimizer
        == 14
    )


class Scaled(nn.Module):
    def __init__(self, base_layer: nn.Module, factors: nn.Parameter) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.strength = 1.0
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) * (1 + self.strength * (self.factors - 1))


@dataclass(frozen=True)
class Scale:
    """Scales the outputs."""

    name: ClassVar[str] = "scale"
    clauses: ClassVar[frozenset[str]] = frozenset()

    def parameters(self, layer: LayerShape, settings: Settings) -> tuple[ParameterPlan, ...]:
        return (ParameterPlan("factors", (layer.out_features,)),)

    def start(self, parameters: Any, context: StartContext) -> None:
        parameters["factors"].fill_(3)

    def adapt(self, layer: nn.Module, entry: PlanEntry, parameters: Any) -> nn.Module:
        return Scaled(layer, **parameters)

    def peft(self, entries: Sequence[PlanEntry]) -> None:
        return None


def test_lorakit_methods() -> None:
    plugins = plugins_of(lorakit_methods=lambda: [Scale])
    model = run("adapt 0 method scale dtype fp32", one(), plugins)
    x = torch.randn(2, 8)
    torch.testing.assert_close(model(x), 3 * one()(x))
    assert lorakit.summary(model).added_parameters == 6


def test_lorakit_roles() -> None:
    role = types.SimpleNamespace(name="first", select=lambda inventory: frozenset(["0"]))
    model = run(
        "adapt @first rank 2", nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), plugins_of(lorakit_roles=lambda: [role])
    )
    assert hasattr(model[0], "lora_A") and not hasattr(model[1], "lora_A")


@dataclass(frozen=True)
class Doubling:
    """Multiplies as the default does, twice as far, where it is told to fit."""

    name: str = "doubling"
    by: float = 2.0
    fits: str = "half"

    def linear(self, storage: Storage) -> Linear | None:
        if storage.quantizer.name != self.fits:
            return None
        shape, dtype, quantizer = storage.shape, storage.dtype, storage.quantizer

        def linear(x: Tensor, base: Any, bias: Tensor | None, low_rank: Any) -> Tensor:
            weight = quantizer.dequantize(QuantizedWeight(base, shape, dtype))
            result = self.by * nn.functional.linear(x, weight, bias)
            return result + sum(one.scaling * (x @ one.A.T.to(x)) @ one.B.T.to(x) for one in low_rank)

        return linear


def test_lorakit_kernels() -> None:
    x = torch.randn(3, 8)
    plain = run("adapt 0 rank 2 quant half", one(), plugins_of(lorakit_quantizers=lambda: [Half]))
    plugins = plugins_of(
        lorakit_quantizers=lambda: [Half],
        # the last that fits multiplies, and one that does not fit is passed over
        lorakit_kernels=lambda: [Doubling("first", 5.0), Doubling(), Doubling("other", 7.0, "nf4")],
    )
    model = run("adapt 0 rank 2 quant half", one(), plugins)
    torch.testing.assert_close(model(x), 2 * plain(x))
    for parameters in zip(plain[0].parameters(recurse=False), model[0].parameters(recurse=False), strict=True):
        with torch.no_grad():
            for parameter in parameters:
                parameter.fill_(0.1)
    base = plain[0].base_layer(x)
    torch.testing.assert_close(model(x) - 2 * base, plain(x) - base)
    assert [kernel.name for kernel in plugins.kernels[:3]] == ["other", "doubling", "first"]


def test_a_kernel_is_chosen_again_when_a_layer_moves_and_stays_with_its_copies() -> None:
    asked: list[Storage] = []

    class Asked:
        """Notes what it is asked and never fits."""

        name = "asked"

        def linear(self, storage: Storage) -> None:
            asked.append(storage)

    model = run("quantize 0 nf4", one(), plugins_of(lorakit_kernels=lambda: [Asked()]))
    before = len(asked)
    model(torch.randn(2, 8)).sum()
    assert len(asked) == before
    model.to(torch.bfloat16)
    assert asked[-1].dtype == torch.bfloat16 and asked[-1].shape == (6, 8)
    model.to("meta")
    assert asked[-1].device.type == "meta"


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

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x @ self.matrix.T


class DoublerLoRA(nn.Module):
    def __init__(self, base_layer: nn.Module, lora_A: nn.Parameter, lora_B: nn.Parameter) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.strength = 1.0
        self.lora_A, self.lora_B = lora_A, lora_B

    def forward(self, x: Tensor) -> Tensor:
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
