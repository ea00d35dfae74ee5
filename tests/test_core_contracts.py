"""What the core promises to every method: plugins travel with the model, all or nothing, and a table that is kept."""

from __future__ import annotations

import copy
import json
import pickle
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import lorakit
from helpers import make_llama, randomize
from lorakit.hooks import (
    LayerShape,
    ParameterPlan,
    PlanEntry,
    Plugins,
    Settings,
    StartContext,
    hookimpl,
    low_rank_fields,
    low_rank_table,
    start_low_rank,
)
from lorakit.plugins import load_plugins


class Gain(nn.Module):
    """y = gain ⊙ base(x)."""

    def __init__(self, base_layer: nn.Module, gain: nn.Parameter) -> None:
        super().__init__()
        self.base_layer, self.gain = base_layer, gain
        self.strength: float | Tensor = 1.0

    @property
    def weight(self) -> Tensor:
        return self.exact_weight(self.base_layer.weight)  # type: ignore[arg-type]

    def exact_weight(self, weight: Tensor) -> Tensor:
        return weight * (1 + self.strength * (self.gain.detach().float() - 1))[:, None]

    def exact_bias(self, bias: Tensor) -> Tensor:
        return bias * (1 + self.strength * (self.gain.detach().float() - 1))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x)
        strength = self.strength
        if isinstance(strength, Tensor):
            strength = strength.view(-1, *(1 for _ in result.shape[1:]))
        return result * (1 + strength * (self.gain - 1)).to(result.dtype)


@dataclass(frozen=True)
class GainMethod:
    """One factor for every output: no rank, and no two matrices."""

    name: ClassVar[str] = "gain"
    clauses: ClassVar[frozenset[str]] = frozenset()

    def parameters(self, layer: LayerShape, settings: Settings) -> Sequence[ParameterPlan]:
        return (ParameterPlan("gain", (layer.out_features,)),) if layer.is_linear else ()

    def start(self, parameters: Mapping[str, Tensor], context: StartContext) -> None:
        parameters["gain"].fill_(1.0)

    def adapt(self, layer: nn.Module, entry: PlanEntry, parameters: Mapping[str, nn.Parameter]) -> nn.Module | None:
        return Gain(layer, parameters["gain"])

    def peft(self, entries: Sequence[PlanEntry]) -> Mapping[str, Any] | None:
        return None


@dataclass(frozen=True)
class Shifted:
    """LoRA's matrices, and a vector beside them that PEFT knows nothing of."""

    name: ClassVar[str] = "shifted"
    clauses: ClassVar[frozenset[str]] = frozenset({"rank", "alpha", "init"})

    def parameters(self, layer: LayerShape, settings: Settings) -> Sequence[ParameterPlan]:
        return (*low_rank_table(layer, settings), ParameterPlan("magnitude", (layer.out_features,)))

    def start(self, parameters: Mapping[str, Tensor], context: StartContext) -> None:
        start_low_rank(parameters, context)
        parameters["magnitude"].copy_(context.stored_weight().norm(dim=1))

    def adapt(self, layer: nn.Module, entry: PlanEntry, parameters: Mapping[str, nn.Parameter]) -> nn.Module | None:
        from lorakit.layers.lora_linear import LoRALinear

        assert entry.adapter is not None
        adapter = LoRALinear(layer, parameters["lora_A"], parameters["lora_B"], scaling=entry.adapter.settings.factor)
        adapter.magnitude = parameters["magnitude"]
        return adapter

    def peft(self, entries: Sequence[PlanEntry]) -> Mapping[str, Any] | None:
        return low_rank_fields(entries) if not entries else None


@dataclass(frozen=True)
class FirstDirection:
    """Starts from a part of the weight, which the base loses."""

    name: ClassVar[str] = "first"
    changes_base: ClassVar[bool] = True

    def initialize(self, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
        u, s, v = torch.linalg.svd(context.weight(), full_matrices=False)
        rank = lora_A.shape[0]
        root = (s[:rank] / context.scaling).sqrt()
        lora_A.copy_(root[:, None] * v[:rank])
        lora_B.copy_(u[:, :rank] * root)


def plugins_with(**hooks: Callable[..., Any]) -> Plugins:
    return load_plugins(modules={"mine 1.2.3": types.SimpleNamespace(**{n: hookimpl(f) for n, f in hooks.items()})})


def lorakit_methods() -> list[type]:
    return [GainMethod, Shifted]


def lorakit_initializers() -> list[type]:
    return [FirstDirection]


@pytest.fixture(scope="module")
def mine() -> Plugins:
    return plugins_with(lorakit_methods=lorakit_methods, lorakit_initializers=lorakit_initializers)


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=tokens).logits


def moved(model: nn.Module) -> None:
    """Move everything that trains, as training would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def everything(model: nn.Module) -> dict[str, Any]:
    """What can be seen of a model: tensors, flags, modes, classes, attributes and hooks."""
    seen: dict[str, Any] = {"names": list(model.state_dict())}
    for path, module in model.named_modules():
        seen[path] = (type(module), module.training, sorted(vars(module)), len(module._forward_pre_hooks))
        for name, parameter in module._parameters.items():
            if parameter is not None:
                seen[f"{path}.{name}"] = (id(parameter), parameter.requires_grad, parameter.detach().clone())
    return seen


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(one[key], other[key], strict=True))
        for key in one
    )


def test_a_method_that_is_not_installed_works_on_a_hugging_face_model(
    mine: Plugins, tokens: Tensor, tmp_path: Path
) -> None:
    model = lorakit.apply("adapt q_proj,v_proj method gain", make_llama(), plugins=mine)
    moved(model)
    wanted = logits(model, tokens)
    model.save_pretrained(tmp_path / "checkpoint-1")  # type: ignore[operator]
    folder = lorakit.save(model, tmp_path / "adapter")
    assert torch.equal(logits(lorakit.load(folder, make_llama(), plugins=mine), tokens), wanted)
    assert torch.allclose(logits(lorakit.merge(model), tokens), wanted, atol=1e-5)


def test_a_model_keeps_its_plugins_in_a_copy(mine: Plugins, tokens: Tensor, tmp_path: Path) -> None:
    model = lorakit.apply("adapt q_proj method gain", make_llama(), plugins=mine)
    twin = copy.deepcopy(model)
    moved(twin)
    again = lorakit.load(lorakit.save(twin, tmp_path / "twin"), make_llama(), plugins=mine)
    assert torch.equal(logits(again, tokens), logits(twin, tokens))


def test_an_adapted_model_pickles(tokens: Tensor) -> None:
    model = lorakit.apply("adapt q_proj rank 2 quant nf4 double", make_llama())
    randomize(model)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(logits(again, tokens), logits(model, tokens))
    assert lorakit.adapters(again).names == ("default",)


@pytest.mark.parametrize(
    "spec", ["adapt q_proj rank 2", "adapt q_proj rank 2 quant nf4\ntrain norm", "adapt @linear rank 2"]
)
@pytest.mark.parametrize("second", [False, True])
def test_a_hook_that_fails_last_leaves_the_model_as_it_was(spec: str, second: bool, tokens: Tensor) -> None:
    def lorakit_model_ready(model: nn.Module) -> None:
        model.config.rope_theta = 1.0  # type: ignore[union-attr]
        model.mark = 1  # type: ignore[assignment]
        raise RuntimeError("not today")

    model = make_llama()
    if second:
        lorakit.apply("adapt v_proj rank 2\ntrain norm", model, name="first")
    before, config = everything(model), copy.deepcopy(model.config.to_dict())
    used = dict(lorakit.adapters(model).used) if second else None
    broken = plugins_with(lorakit_model_ready=lorakit_model_ready)
    with pytest.raises(lorakit.PluginError, match=r"plugin mine 1\.2\.3 failed in lorakit_model_ready: .*not today"):
        lorakit.apply(spec.replace(" quant nf4", "") if second else spec, model, name="second", plugins=broken)
    assert same(before, everything(model)) and model.config.to_dict() == config
    if second:
        assert dict(lorakit.adapters(model).used) == used and lorakit.adapters(model).names == ("first",)
    lorakit.apply("adapt q_proj rank 2", model, name="second")


def test_a_method_without_two_matrices_counts_saves_and_merges(mine: Plugins, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    plan = lorakit.plan("adapt 0,2 method gain", model, plugins=mine)
    assert (plan.added, plan.trainable) == (8, 8)
    assert plan.memory.adapters == plan.memory.gradients == 4 * 8
    lorakit.apply(plan, model, plugins=mine)
    assert lorakit.summary(model).added_parameters == 8
    moved(model)
    x = torch.randn(4, 6)
    wanted = model(x)
    assert torch.allclose(lorakit.merge(model)(x), wanted, atol=1e-6)


def test_settings_that_a_method_does_not_take_are_refused(mine: Plugins) -> None:
    with pytest.raises(lorakit.SpecError, match="`gain` takes no"):
        lorakit.parse("adapt q rank 4 method gain", plugins=mine)
    with pytest.raises(lorakit.SpecError, match="`shifted` takes no `dropout`"):
        lorakit.parse("adapt q rank 4 dropout 0.1 method shifted", plugins=mine)


def test_what_a_method_cannot_adapt_is_said_when_it_is_planned(mine: Plugins) -> None:
    with pytest.raises(lorakit.PlanError, match="`gain` has no adapter for `0`, a Embedding"):
        lorakit.plan("adapt 0 method gain", nn.Sequential(nn.Embedding(9, 4)), plugins=mine)


def test_peft_refuses_by_name_what_it_cannot_compute(mine: Plugins, tmp_path: Path, caplog: Any) -> None:
    from peft import PeftModel

    model = lorakit.apply("adapt q_proj rank 2 method shifted", make_llama(), plugins=mine)
    with caplog.at_level("WARNING", "lorakit"):
        folder = lorakit.save(model, tmp_path / "adapter")
        lorakit.save(model, tmp_path / "again")
    assert caplog.text.count("of the type LORAKIT_SHIFTED, which PEFT refuses") == 1
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORAKIT_SHIFTED"
    with pytest.raises(Exception, match="LORAKIT_SHIFTED"):
        PeftModel.from_pretrained(make_llama(), folder)


def test_a_rank_that_moved_is_saved_as_it_is(tokens: Tensor, tmp_path: Path) -> None:
    from peft import PeftModel

    model = lorakit.apply("adapt q_proj,v_proj rank 4 alpha 8", make_llama())
    randomize(model)
    layer = model.get_submodule("model.layers.1.self_attn.v_proj")
    layer.lora_A = nn.Parameter(layer.lora_A.detach()[:3].clone())  # type: ignore[operator]
    layer.lora_B = nn.Parameter(layer.lora_B.detach()[:, :3].clone())  # type: ignore[operator]
    wanted = logits(model, tokens)
    folder = lorakit.save(model, tmp_path / "adapter")
    assert torch.equal(logits(lorakit.load(folder, make_llama()), tokens), wanted)
    theirs = PeftModel.from_pretrained(make_llama(), folder)
    assert torch.allclose(logits(theirs, tokens), wanted, atol=1e-5)


def test_a_shape_of_no_rank_is_not_saved(tmp_path: Path) -> None:
    model = lorakit.apply("adapt q_proj rank 4", make_llama())
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    layer.lora_A = nn.Parameter(torch.zeros(4, 7))
    with pytest.raises(lorakit.ModelError, match=r"`lora_A` of `model.layers.0.self_attn.q_proj` is \(4, 7\)"):
        lorakit.save(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_nothing_that_is_not_finite_is_written(tmp_path: Path) -> None:
    model = lorakit.apply("adapt q_proj rank 4", make_llama())
    with torch.no_grad():
        model.get_parameter("model.layers.1.self_attn.q_proj.lora_B")[0, 0] = float("nan")
    with pytest.raises(lorakit.ModelError, match=r"`model\.layers\.1\.self_attn\.q_proj\.lora_B` holds NaN"):
        lorakit.save(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(("field", "value"), [("lora_alpha", 7), ("r", 7), ("use_rslora", True)])
def test_a_config_that_was_edited_beside_its_plan_is_refused(field: str, value: object, tmp_path: Path) -> None:
    folder = lorakit.save(lorakit.apply("adapt q_proj rank 4", make_llama()), tmp_path / "adapter")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(lorakit.AdapterError, match=f"says {field}={value}, and the plan beside it"):
        lorakit.load(folder, make_llama())


@pytest.mark.parametrize("quant", ["", " quant nf4 double"])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_start_that_takes_from_the_base(
    quant: str, streamed: bool, mine: Plugins, tokens: Tensor, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    make_llama().save_pretrained(base)
    source: Any = base if streamed else make_llama()
    plain = lorakit.parse(f"adapt q_proj,down_proj rank 4{quant}", plugins=mine)
    spec = lorakit.parse(f"adapt q_proj,down_proj rank 4 alpha 8 init first{quant}", plugins=mine)
    model = lorakit.apply(spec, source, plugins=mine)
    path = "model.layers.0.self_attn.q_proj"
    layer: Any = model.get_submodule(path)
    weight = make_llama().get_submodule(path).weight.detach()
    left = torch.linalg.svdvals(weight)[4:]
    held = layer.base_layer.weight.detach()
    if not quant:
        assert torch.allclose(torch.linalg.svdvals(held)[: len(left)], left, atol=1e-5)
        assert torch.allclose(logits(model, tokens), logits(make_llama(), tokens), atol=1e-4)
    else:
        # what is quantized has lost its largest directions, so that less is lost
        ordinary: Any = lorakit.apply(plain, make_llama(), plugins=mine).get_submodule(path)
        error = (layer.weight.detach() - weight).norm()
        assert error < (ordinary.weight.detach() - weight).norm()
    fresh = logits(model, tokens)
    randomize(model)
    wanted = logits(model, tokens)
    folder = lorakit.save(model, tmp_path / "adapter")
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORAKIT_LORA_ON_CHANGED_BASE"
    again = lorakit.load(folder, base if streamed else make_llama(), plugins=mine)
    assert torch.equal(logits(again, tokens), wanted)
    with lorakit.adapters(model).disabled():
        assert torch.allclose(logits(model, tokens), fresh, atol=1e-4)
    assert torch.equal(logits(model, tokens), wanted)
    lorakit.apply(plain, model, name="second", plugins=mine)
    with pytest.raises(lorakit.ModelError, match="was taken from the base weight"):
        lorakit.adapters(model).remove("default")
    (folder / "start.safetensors").unlink()
    with pytest.raises(lorakit.AdapterError, match=r"start\.safetensors is missing"):
        lorakit.load(folder, make_llama(), plugins=mine)


def test_folders_of_the_first_version_give_the_same_bits(tokens: Tensor, tmp_path: Path) -> None:
    """A plan of version 1, as the release before wrote it, is read with the table that its method gives."""
    model = lorakit.apply("adapt q_proj,v_proj rank 4 alpha 8 scaling rslora quant nf4 double", make_llama())
    randomize(model)
    folder = lorakit.save(model, tmp_path / "adapter")
    plain = json.loads((folder / "plan.json").read_text())
    for name in ("groups", "compute"):
        plain.pop(name, None)
    plain["memory"].pop("recompute", None)
    plain["version"] = 1
    for rule in plain["rules"]:
        del rule["quant"], rule["reached"]
    for entry in plain["entries"]:
        adapter = entry["adapter"]
        if adapter is None:
            continue
        adapter |= adapter.pop("settings")
        adapter["parameters"] = sum(torch.Size(one["shape"]).numel() for one in adapter["parameters"])
    (folder / "plan.json").write_text(json.dumps(plain))
    assert torch.equal(logits(lorakit.load(folder, make_llama()), tokens), logits(model, tokens))
