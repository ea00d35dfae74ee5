"""The pages on hooks: every hook has one, its signature is the code's, and its example does what the page prints."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import inspect
import io
import re
import sys
import tomllib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorakit import hooks
from lorakit.hooks import protocols, specs
from lorakit.plugins import load_plugins

PLUGINS = Path(__file__).parent.parent / "plugins"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((PLUGINS / "hooks").glob("*.md"))}
HOOKS = {
    name: value for name, value in vars(specs).items() if inspect.isfunction(value) and name.startswith("lorakit_")
}
# pages on what is no hook, those with an example and those that are tables
BESIDE = {"adapter", "calibrated_quantizer", "checkpointed_quantizer", "observer", "start_context"}
TABLES = {"plan_values", "values"}
# what plugins hand over and lorakit calls
KINDS = {
    name: value
    for name, value in vars(protocols).items()
    if getattr(value, "_is_protocol", False) and name != "Protocol"
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.S | re.M)


def section(page: str, title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.S | re.M)
    assert found is not None, title
    return found[1]


def definitions(block: str) -> dict[str, Any]:
    """Return what a block of signatures defines, its annotations as they are written."""
    names: dict[str, Any] = {}
    without_bases = re.sub(r"^(class \w+)\(.*\):$", r"\1:", block, flags=re.M)
    exec(compile(f"from __future__ import annotations\n{without_bases}", "page", "exec"), names)
    return {name: value for name, value in names.items() if name not in ("annotations", "__builtins__")}


def functions(kind: type) -> dict[str, inspect.Signature]:
    """Return the signatures of a class's own methods and properties."""
    own = {name: value.fget if isinstance(value, property) else value for name, value in vars(kind).items()}
    return {
        name: inspect.signature(value)
        for name, value in own.items()
        if inspect.isfunction(value) and not name.startswith("_")
    }


@pytest.fixture
def my_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], types.ModuleType]:
    """A function that imports a page's example as the module `my_plugin`."""

    def load(code: str) -> types.ModuleType:
        (tmp_path / "my_plugin.py").write_text(code, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "my_plugin", raising=False)
        module = importlib.import_module("my_plugin")
        # so that it is gone when the test ends
        monkeypatch.delitem(sys.modules, "my_plugin")
        monkeypatch.setitem(sys.modules, "my_plugin", module)
        return module

    return load


def counted(function: Callable[..., Any], calls: list[str], name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        return function(*arguments, **named)

    return call


def test_every_hook_has_a_page_and_every_page_a_hook() -> None:
    assert PAGES.keys() == HOOKS.keys() | BESIDE | TABLES
    assert len(HOOKS) >= 16


def test_the_index_names_every_page_and_no_other() -> None:
    index = (PLUGINS / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\]\(hooks/(\w+)\.md\)", index)) == sorted(PAGES)
    for name, page in PAGES.items():
        assert set(re.findall(r"\]\((\w+)\.md\)", page)) <= PAGES.keys(), name
        titles = {title.lower() for title in re.findall(r"^## (.*)$", page, re.M)}
        assert set(re.findall(r"\]\(#([\w-]+)\)", page)) <= titles, name


@pytest.mark.parametrize("name", HOOKS)
def test_the_signature_is_the_codes(name: str) -> None:
    shown = definitions(blocks(PAGES[name].partition("## ")[0], "python")[0])
    assert list(shown) == [name]
    assert inspect.signature(shown[name]) == inspect.signature(HOOKS[name])


def test_every_protocol_is_shown_with_its_methods() -> None:
    shown: dict[str, type] = {}
    for page in PAGES.values():
        if "## What each has" in page:
            shown |= definitions(blocks(section(page, "What each has"), "python")[0])
    assert shown.keys() == KINDS.keys() and len(KINDS) >= 6
    for name, kind in KINDS.items():
        assert functions(shown[name]) == functions(kind), name
        assert vars(shown[name]).get("__annotations__", {}) == vars(kind).get("__annotations__", {}), name


def described(title: str) -> dict[str, str]:
    """Return the rows of the table below a title on any page: what stands there with its type."""
    (text,) = [section(page, title) for page in PAGES.values() if re.search(rf"^## {title}$", page, re.M)]
    rows = re.findall(r"^\| `(\w+)(?:\([\w, ]*\))?` \| `(.*?)` \| \S.* \|$", text, re.M)
    return {name: wanted.replace("\\|", "|") for name, wanted in rows}


def written(annotation: Any) -> str:
    return str(getattr(annotation, "__forward_arg__", annotation))


def what_it_has(kind: type) -> dict[str, str]:
    """Return the fields of a dataclass or a named tuple, its properties and its methods, each with its written type."""
    if not dataclasses.is_dataclass(kind):
        return dict(zip(kind.__annotations__, map(written, kind.__annotations__.values()), strict=True))
    found = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    for name, value in vars(kind).items():
        function = getattr(value, "fget", None) or getattr(value, "func", None) or getattr(value, "__func__", value)
        if inspect.isfunction(function) and not name.startswith("_"):
            found[name] = str(inspect.signature(function).return_annotation)
    return found


@pytest.mark.parametrize("name", sorted(hooks.__all__))
def test_every_public_name_is_documented_with_all_that_it_has(name: str) -> None:
    value = getattr(hooks, name)
    if isinstance(value, type) and (dataclasses.is_dataclass(value) or issubclass(value, tuple)):
        assert described(name) == what_it_has(value)
        return
    if name in KINDS:
        # its methods are compared with those of the code elsewhere
        return
    shown: dict[str, Any] = {}
    for page in PAGES.values():
        for block in blocks(page.partition("## Example")[0], "python"):
            shown |= definitions(block)
    assert name in shown, f"no page shows {name}"
    if inspect.isclass(value):
        assert functions(shown[name]) and functions(shown[name]).items() <= functions(value).items()
    elif inspect.isfunction(value):
        assert inspect.signature(shown[name]) == inspect.signature(value)


def test_the_index_names_the_protocol_of_today() -> None:
    index = (PLUGINS / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"lorakit_protocol = (\d+)", index) == [str(specs.PROTOCOL)]


@pytest.mark.parametrize("name", sorted(PAGES.keys() - TABLES))
def test_the_example_does_what_the_page_prints(name: str, my_plugin: Callable[[str], types.ModuleType]) -> None:
    page = PAGES[name]
    assert section(page, "When it is called").strip()
    module = my_plugin(blocks(section(page, "Example"), "python")[0])
    assert (inspect.getdoc(module) or "").endswith(".")
    wanted = {name} if name in HOOKS else HOOKS.keys() & vars(module)
    calls: list[str] = []
    for own in [one for one in vars(module) if one in HOOKS]:
        setattr(module, own, counted(getattr(module, own), calls, own))
    use = section(page, "Use it")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(blocks(use, "python")[0], f"{name}.md", "exec"), {})
    assert printed.getvalue() == blocks(use, "text")[0]
    assert wanted and wanted <= set(calls), f"{wanted - set(calls)} was never called"


def test_the_whole_plugin_of_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found through its entry point, as an installed distribution is."""
    import torch

    import lorakit

    index = (PLUGINS / "README.md").read_text(encoding="utf-8")
    project = tomllib.loads(blocks(index, "toml")[0])["project"]
    (target,) = project["entry-points"]["lorakit"].values()
    (tmp_path / f"{target}.py").write_text(blocks(index, "python")[0], encoding="utf-8")
    info = tmp_path / f"{target}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    entries = "".join(f"{key} = {value}\n" for key, value in project["entry-points"]["lorakit"].items())
    (info / "entry_points.txt").write_text(f"[lorakit]\n{entries}")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    plugins = load_plugins(importlib.metadata.entry_points(group="lorakit"))
    assert plugins.origin(plugins.quantizers["half"]) == "lorakit-half 1.0"
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    weight = model.get_parameter("0.weight").detach().clone()
    adapted: Any = lorakit.apply(lorakit.parse("quantize 0 half(scale=2)", plugins=plugins), model, plugins=plugins)
    assert torch.equal(adapted[0].weight, (weight / 2).half().float() * 2)
    with pytest.raises(lorakit.SpecError, match="scale must be above 0"):
        lorakit.parse("quantize 0 half(scale=0)", plugins=plugins)
    monkeypatch.delitem(sys.modules, target)
