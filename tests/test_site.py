"""The documentation site: pages are assembled whole, and what they say in specs, commands, names and fields is so."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import lorakit
from cookbook_models import MODELS
from lorakit.cli.main import command_named
from lorakit.foreign.dialects import DIALECTS
from lorakit.foreign.rules import RULES
from lorakit.foreign.writing import TRAIN_OPTIONS
from lorakit.language.foreign_words import FOREIGN_WORDS
from lorakit.language.words import STATEMENTS
from lorakit.planning import migration
from lorakit.planning.plan import FORMAT_VERSION

ROOT = Path(__file__).parent.parent
COOKBOOK = ROOT / "examples" / "cookbook"
SITE = ROOT / "examples" / "site"


def _assembler() -> ModuleType:
    spec = importlib.util.spec_from_file_location("assemble", SITE / "assemble.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


assemble = _assembler()
PAGES: dict[str, str] = dict(assemble.pages())


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.S | re.M)


def table(page: str, first: str) -> Iterator[list[str]]:
    """Yield the rows of the table whose head begins with a word."""
    (text,) = re.findall(rf"^\| {first} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGES[page], re.M)
    for row in text.splitlines():
        yield [cell.strip() for cell in row.strip("|").split("|")]


def test_every_page_is_whole_and_every_page_of_the_settings_is_there(tmp_path: Path) -> None:
    assemble.assemble(tmp_path)
    written = {path.relative_to(tmp_path / "pages").as_posix() for path in tmp_path.glob("pages/**/*.md")}
    assert written == PAGES.keys() and len(written) > 80
    nav = json.dumps(tomllib.loads((tmp_path / "zensical.toml").read_text("utf-8"))["project"]["nav"])
    named = set(re.findall(r'"([\w/-]+\.md)"', nav))
    assert named <= written
    # those that an index page leads to are not in the navigation
    assert {page for page in written - named if not re.match(r"errors/L|plugins/(hooks|lorakit-)", page)} == set()
    assert not any("{{" in text for text in PAGES.values())


def test_a_section_that_no_page_takes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("# lorakit\n\n## Never seen\n")
    monkeypatch.setattr(assemble, "ROOT", tmp_path)
    with pytest.raises(assemble.SiteError, match="Never seen"):
        list(assemble.pages())


def test_a_link_to_a_section_leads_to_its_page() -> None:
    assert "](coming-from.md#coming-from-peft-or-axolotl)" in PAGES["commands.md"]
    assert "](training.md#data)" in PAGES["commands.md"]


@pytest.mark.parametrize("page", sorted(page for page in PAGES if "/" not in page))
def test_specs(page: str) -> None:
    for text in blocks(page, "lora"):
        assert lorakit.parse(text).rules, text


def test_every_spec_of_the_cookbook_is_shown_and_planned_here() -> None:
    names = {path.stem for path in COOKBOOK.glob("*.lora")}
    assert names == MODELS.keys() and len(names) >= 6
    shown = blocks("cookbook.md", "lora")
    assert sorted(shown) == sorted((COOKBOOK / f"{name}.lora").read_text("utf-8") for name in names)


@pytest.mark.parametrize("name", MODELS)
def test_a_spec_of_the_cookbook_does_what_it_says(name: str) -> None:
    config = MODELS[name]()
    plan = lorakit.plan(COOKBOOK / f"{name}.lora", config)
    adapted = {entry.path for entry in plan.entries if entry.adapter}
    stored = {entry.path for entry in plan.entries if entry.quant}
    whole = {entry.path.rpartition(".")[2] for entry in plan.entries if entry.train}
    last = {path.rpartition(".")[2] for path in adapted}
    attention, mlp = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
    match name:
        case "chat":
            assert last == attention | mlp and stored == adapted and len(adapted) == 14
        case "classification":
            assert last == attention | mlp and whole == {"score"} and not stored
        case "long-context":
            assert last == attention and len(stored) == 14
            assert whole == {"embed_tokens", "input_layernorm", "post_attention_layernorm", "norm"}
        case "moe":
            assert last == attention | {"gate_up_proj", "down_proj"} and not any(".gate." in path for path in adapted)
            ranks = {entry.path.split(".")[3]: entry.adapter.settings.rank for entry in plan.entries if entry.adapter}
            assert ranks == {"self_attn": 16, "mlp": 4}
        case "vision":
            assert all(".language_model." in path for path in stored) and len(stored) == 14
            assert len(adapted - stored) == 2 and all("multi_modal_projector" in path for path in adapted - stored)
        case "tasks":
            assert last == attention and len(adapted) == 8


def commands() -> list[str]:
    found = [
        line
        for page in ("cookbook.md", "rank-and-rate.md")
        for block in blocks(page, "sh")
        for line in block.splitlines()
    ]
    return [line for line in found if line.startswith("lorakit ")]


@pytest.mark.parametrize("line", commands())
def test_a_command_has_the_options_that_it_is_given(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    command = command_named(name)
    given = {one for one in arguments if re.match(r"--?[a-z]", one)}
    assert given <= {option for one in command.params for option in one.opts}


KNOWN = (
    {*FOREIGN_WORDS, *RULES, *TRAIN_OPTIONS}
    | {word for dialect in DIALECTS for word in (*dialect.names, *dialect.names.values())}
)  # fmt: skip


@pytest.mark.parametrize("row", list(table("coming-from.md", "PEFT, transformers")), ids=lambda row: row[-1])
def test_a_row_of_the_table_of_other_tools(row: list[str]) -> None:
    *theirs, ours = row
    assert len(theirs) == 3 and theirs[0]
    for cell in theirs[:2]:
        word = re.match(r"`(\w+)", cell)
        assert not cell or (word is not None and word[1] in KNOWN), cell
    (written,) = re.findall(r"`(.*?)`", ours)
    first = written.split()[0]
    if first.startswith("--"):
        assert first in {option for one in command_named("train").params for option in one.opts}
    else:
        text = written if first in STATEMENTS else f"adapt q_proj {written}{'' if first == 'rank' else ' rank 16'}"
        spec = lorakit.parse(text if first in ("adapt", "quantize", "train") else f"adapt q_proj rank 1\n{text}")
        assert spec.rules


def test_the_api_page_has_every_public_name() -> None:
    named = set(re.findall(r"^::: lorakit\.(\w+)$", PAGES["api.md"], re.M))
    assert named | {"hookimpl", "__version__"} == set(lorakit.__all__)
    for path in re.findall(r"^::: (lorakit\.\w+\.[\w.]+)$", PAGES["api.md"], re.M):
        module, _, name = path.rpartition(".")
        assert inspect.isclass(getattr(importlib.import_module(module), name))


def test_the_errors_page_has_every_code_and_every_class() -> None:
    codes = {path.stem for path in (ROOT / "lorakit" / "language" / "pages").glob("L*.md")}
    assert set(re.findall(r"^\| \[(L\d+)\]\(\1\.md\) \| \S", PAGES["errors/index.md"], re.M)) == codes
    raised = {f"`lorakit.{name}`" for name in lorakit.__all__ if name.endswith("Error")} - {"`lorakit.LorakitError`"}
    rows = [row[0] for row in table("errors/index.md", "class")]
    assert set(rows) == raised and rows[-2:] == ["`lorakit.WriteError`", "`lorakit.TrainingError`"]
    for name in lorakit.__all__:
        if name.endswith("Error"):
            derives = issubclass(getattr(lorakit, name), lorakit.LorakitError)
            assert derives == (f"`lorakit.{name}`" not in rows[-2:])


def test_the_fields_and_versions_of_a_plan_are_those_of_the_page() -> None:
    plain = json.loads(lorakit.plan("adapt q_proj rank 2", MODELS["chat"]()).to_json())
    assert {row[0].strip("`") for row in table("formats.md", "field")} == plain.keys()
    versions = [int(row[0]) for row in table("formats.md", "version")]
    assert versions == [*sorted(migration.STEPS), FORMAT_VERSION]
    assert f"The present version is {FORMAT_VERSION}." in PAGES["formats.md"]


def test_the_files_of_an_adapter_are_those_of_the_page(llama_folder: Path, tmp_path: Path) -> None:
    lorakit.save(lorakit.apply("adapt q_proj rank 2", str(llama_folder)), tmp_path / "adapter")
    written = {path.name for path in (tmp_path / "adapter").iterdir()}
    rows = {row[0].strip("`"): row[1] for row in table("formats.md", "file")}
    assert {name for name, what in rows.items() if "(`" not in what} <= written <= rows.keys()


def test_the_rates_that_the_page_names_are_the_defaults() -> None:
    plan = lorakit.plan("adapt q_proj rank 128 alpha 16 scaling rslora", MODELS["chat"]())
    factors = {round(entry.adapter.settings.factor, 2) for entry in plan.entries if entry.adapter}
    assert factors == {1.41} and "= 1.41" in PAGES["rank-and-rate.md"]
    assert plan.optimizer.lr == 2e-4 and "2e-4 is what `adamw` takes here" in PAGES["rank-and-rate.md"]
