"""Every moment of a run: hooks get its plugins, a wrong answer names the plugin, and models keep their plugins."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from plugged import plugins_of
from torch import Tensor, nn

import lorakit
from lorakit import plugins as composition
from lorakit.hooks import ModelReference, Plan, Plugins, hookimpl, specs
from lorakit.plugins import load_plugins

ORIGIN = "sample 1.0"
MOMENTS = sorted(
    name
    for name, value in vars(specs).items()
    if inspect.isfunction(value) and name.startswith("lorakit_") and "plugins" in inspect.signature(value).parameters
)


class Bank(nn.Module):
    """A matrix that no layer holds, so that parameters are asked about too."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


def made() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), Bank())


def answering(hook: str, answer: Any, seen: list[Any] | None = None) -> Any:
    """Return a function that takes what the hook gives, notes its `plugins`, and answers so."""
    arguments = ", ".join(inspect.signature(getattr(specs, hook)).parameters)
    noted = [] if seen is None else seen
    return eval(f"lambda {arguments}: noted.append(plugins) or answer", {"noted": noted, "answer": answer})


def life(plugins: Plugins, folder: Path, model: nn.Module | None = None) -> None:
    """Read a model by its name and by itself, adapt it, save, load and merge."""
    spec = lorakit.parse("adapt 0 rank 2", plugins=plugins)
    with pytest.raises(lorakit.ModelError, match="no module named 'mine'"):
        lorakit.plan(spec, "mine://nothing", plugins=plugins)
    adapted = lorakit.apply(spec, made() if model is None else model, plugins=plugins)
    lorakit.load(lorakit.save(adapted, folder / "adapter"), made(), plugins=plugins)
    lorakit.merge(adapted)


def test_every_hook_but_the_registries_is_a_moment() -> None:
    hooks = {name for name, value in vars(specs).items() if inspect.isfunction(value) and name.startswith("lorakit_")}
    assert hooks - set(MOMENTS) == {f"lorakit_{kind}s" for kind in (
        "quantizer", "initializer", "optimizer", "method", "role", "kernel", "data_format", "data_shape",
    )}  # fmt: skip
    assert len(MOMENTS) >= 12


@pytest.mark.parametrize("hook", MOMENTS)
def test_a_hook_gets_the_plugins_of_the_run(hook: str, tmp_path: Path) -> None:
    seen: list[Any] = []
    plugins = plugins_of(**{hook: answering(hook, None, seen)})
    life(plugins, tmp_path)
    assert seen and all(one is plugins for one in seen)
    assert plugins is not composition.default_plugins()


@pytest.mark.parametrize("answer", [(4, 4), "a word", {"rank": 2}, True], ids=["tuple", "word", "dict", "bool"])
@pytest.mark.parametrize("hook", MOMENTS)
def test_a_wrong_answer_names_the_plugin_with_its_version(hook: str, answer: Any, tmp_path: Path) -> None:
    plugins = plugins_of(**{hook: answering(hook, answer)})
    model = made()
    before = {name: type(module) for name, module in model.named_modules()}
    words = rf"plugin sample 1\.0 answered {hook} with a {type(answer).__name__}; it is to return "
    with pytest.raises(lorakit.PluginError, match=words):
        life(plugins, tmp_path, model)
    after_apply = hook in ("lorakit_before_save", "lorakit_after_load", "lorakit_model_merged")
    assert after_apply or {name: type(module) for name, module in model.named_modules()} == before
    assert after_apply or all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("hook", MOMENTS)
def test_a_hook_that_raises_names_the_plugin_with_its_version(hook: str, tmp_path: Path) -> None:
    arguments = ", ".join(inspect.signature(getattr(specs, hook)).parameters)
    plugins = plugins_of(**{hook: eval(f"lambda {arguments}: 1 / 0")})
    with pytest.raises(lorakit.PluginError, match=rf"plugin sample 1\.0 failed in {hook}: ZeroDivisionError: division"):
        life(plugins, tmp_path)


def test_bytes_below_nothing_are_refused() -> None:
    plugins = plugins_of(lorakit_estimate_memory=lambda entry: -1)
    with pytest.raises(lorakit.PluginError, match=r"plugin sample 1\.0 counted -1 bytes in lorakit_estimate_memory"):
        lorakit.plan(lorakit.parse("adapt 0 rank 2"), made(), plugins=plugins)


def test_a_plugins_own_error_for_users_goes_through_as_it_is() -> None:
    def refuse(plan: Plan) -> None:
        raise lorakit.PlanError("not in this house")

    with pytest.raises(lorakit.PlanError, match=r"^not in this house$"):
        lorakit.plan(lorakit.parse("adapt 0 rank 2"), made(), plugins=plugins_of(lorakit_plan_ready=refuse))


@pytest.mark.parametrize("marked", [hookimpl(wrapper=True), hookimpl(hookwrapper=True)], ids=["new", "old"])
def test_a_wrapper_is_refused(marked: Any) -> None:
    def lorakit_plan_ready(plan: Plan) -> Any:
        return (yield)

    module = types.SimpleNamespace(lorakit_plan_ready=marked(lorakit_plan_ready))
    with pytest.raises(lorakit.PluginError, match=r"plugin sample 1\.0: `lorakit_plan_ready` is a wrapper"):
        load_plugins(modules={ORIGIN: module})


def test_a_wrong_model_is_no_model() -> None:
    def load(reference: ModelReference) -> Any:
        return object() if reference.text == "mine://one" else None

    with pytest.raises(lorakit.PluginError, match=r"sample 1\.0 answered lorakit_load_model with a object"):
        lorakit.plan(lorakit.parse("adapt 0 rank 2"), "mine://one", plugins=plugins_of(lorakit_load_model=load))


def test_a_copy_of_an_adapted_model_has_the_very_same_plugins(tmp_path: Path) -> None:
    seen: list[int] = []
    plugins = plugins_of(lorakit_before_save=lambda model, folder: seen.append(1))
    adapted = lorakit.apply("adapt 0 rank 2", made(), plugins=plugins)
    lorakit.save(copy.deepcopy(adapted), tmp_path / "copy")
    lorakit.save(copy.copy(adapted), tmp_path / "shallow")
    assert len(seen) == 2
    assert copy.deepcopy(plugins) is plugins


def test_a_pickled_model_finds_its_plugins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "noting.py").write_text(
        "from lorakit.hooks import hookimpl\nseen = []\n@hookimpl\ndef lorakit_before_save(model, folder):\n"
        "    seen.append(folder)\n"
    )
    info = tmp_path / "noting-3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: noting\nVersion: 3.1\n")
    (info / "entry_points.txt").write_text("[lorakit]\nit = noting\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delenv(composition.CHOICE, raising=False)
    composition.default_plugins.cache_clear()
    try:
        adapted = lorakit.apply("adapt 0 rank 2", made())
        stored = pickle.dumps(adapted)
        again = pickle.loads(stored)
        x = torch.randn(2, 4)
        torch.testing.assert_close(again(x), adapted(x))
        lorakit.save(again, tmp_path / "adapter")
        assert len(sys.modules["noting"].seen) == 1
        monkeypatch.setenv(composition.CHOICE, "")
        composition.default_plugins.cache_clear()
        with pytest.raises(lorakit.PluginError, match=r"adapted with the plugins of .*noting 3\.1.*not loaded here"):
            pickle.loads(stored)
    finally:
        composition.default_plugins.cache_clear()
        sys.modules.pop("noting", None)


def test_plugins_handed_in_serve_a_hugging_face_model_as_well(tmp_path: Path) -> None:
    from lorakit.testing.companions import SharedMatrices, Vector
    from lorakit.testing.layers import small_llama

    plugins = plugins_of(lorakit_methods=lambda: [Vector, SharedMatrices])
    spec = lorakit.parse(
        "adapt q_proj method testing_vector\nadapt v_proj rank 2 method testing_shared", plugins=plugins
    )
    model: Any = lorakit.apply(spec, small_llama(), plugins=plugins)
    model.save_pretrained(tmp_path / "adapter")
    loaded = lorakit.load(tmp_path / "adapter", small_llama(), plugins=plugins)
    tokens = torch.arange(5)[None]
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
