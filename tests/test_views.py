"""What people see of a plan: printed, compared, in a notebook, and as a starter spec."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_cli import lorakit_command
from torch import nn

import lorakit
from helpers import make_gpt2, make_llama
from lorakit.language.format import format_text
from lorakit.planning.difference import difference, difference_view
from lorakit.planning.reading import read_inventory
from lorakit.planning.report import plan_view, show_bytes
from lorakit.planning.starter import starter_spec
from lorakit.plugins import default_plugins


def shown(view: object) -> str:
    stream = io.StringIO()
    Console(file=stream, width=140).print(view)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 * 2**20, "5.0 MiB"), (3 * 2**40, "3.00 TiB")],
)
def test_bytes_in_words(count: int, words: str) -> None:
    assert show_bytes(count) == words


def test_the_printed_plan(llama: nn.Module) -> None:
    text = "adapt @attention rank 4 alpha 8 lr 1e-3 quant nf4 double\nadapt q_proj rank 2\ntrain model.norm"
    printed = shown(plan_view(lorakit.plan(text, llama)))
    for words in (
        "line 1", "line 2", "line 3", "lora rank 4, alpha 8 (update × 2)", "trains in full", "lr 0.001",
        "model.layers.*.self_attn.k_proj", "fp32 → nf4 double", "adapters bf16", "peak",
    ):  # fmt: skip
        assert words in printed, printed
    every = shown(plan_view(lorakit.plan(text, llama), every_module=True))
    assert "model.layers.0.self_attn.k_proj" in every and "model.layers.1.self_attn.k_proj" in every


def test_a_notebook_shows_a_plan(llama: nn.Module) -> None:
    page = lorakit.plan("adapt @linear rank 4 quant nf4\ntrain @norm", llama)._repr_html_()

    class Tags(HTMLParser):
        open_tags: list[str] = []  # noqa: RUF012
        cells = 0

        def handle_starttag(self, tag: str, attrs: object) -> None:
            assert tag not in ("script", "link", "iframe")
            self.cells += tag == "td"
            if tag != "br":
                self.open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open_tags.pop() == tag

    tags = Tags()
    tags.feed(page)
    assert tags.open_tags == [] and tags.cells > 50
    assert "width: 160.0px" in page and "rank 4" in page


def test_difference_of_two_plans(llama: nn.Module) -> None:
    only = "\nquantize @linear none"
    one = lorakit.plan(f"adapt q_proj,v_proj rank 4 quant nf4 double{only}", llama)
    two = lorakit.plan(f"adapt q_proj rank 8 quant nf4\nadapt @mlp rank 2{only}", llama)
    found = difference(one, two)
    assert {kind: found.count(kind) for kind in ("add", "change", "remove")} == {"add": 6, "change": 2, "remove": 2}
    change = next(change for change in found.changes if change.path == "model.layers.0.self_attn.q_proj")
    assert change.fields == (("quant", "nf4 double", "nf4"), ("rank", "4", "8"), ("alpha", "4", "8"))
    printed = shown(difference_view(found))
    assert "~ model.layers.*.self_attn.q_proj  × 2" in printed and "6 to add, 2 to change, 2 to remove" in printed
    assert difference(one, one).changes == () and "no module changes" in shown(difference_view(difference(one, one)))


def test_diff_on_the_command_line(llama_folder: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.lora", tmp_path / "two.lora"
    one.write_text("adapt q_proj rank 4\n")
    two.write_text("adapt q_proj rank 8\n")
    printed = lorakit_command("diff", one, two, llama_folder).stdout
    assert "rank   4 → 8" in printed and "0 to add, 2 to change, 0 to remove" in printed
    plain = json.loads(lorakit_command("diff", one, two, llama_folder, "--format", "json").stdout)
    assert [change["kind"] for change in plain["changes"]] == ["change", "change"]
    plan = tmp_path / "plan.json"
    plan.write_text(lorakit_command("plan", two, llama_folder, "--format", "json").stdout)
    assert "no module changes" in lorakit_command("diff", two, plan, llama_folder).stdout
    # whatever takes a spec takes a plan made elsewhere
    lorakit_command("apply", plan, llama_folder, "-o", tmp_path / "out")
    assert (tmp_path / "out" / "plan.json").read_text().strip() == plan.read_text().strip()


class Narrow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(128, 128)
        self.score = nn.Linear(128, 2)


@pytest.mark.parametrize("make", [make_llama, make_gpt2, Narrow])
@pytest.mark.parametrize("domains", ["one", "many"])
def test_a_starter_spec_is_clean_and_plans(make: object, domains: str) -> None:
    model = make()  # type: ignore[operator]
    plugins = default_plugins()
    text = starter_spec(read_inventory(model, plugins), plugins, domains, "./model")
    assert format_text(text) == text
    spec = lorakit.parse(text)
    assert {rule.rank for rule in spec.rules} == {16 if domains == "one" else 64}  # type: ignore[union-attr]
    # the promise at the end is for real models; these have more adapter than model
    bare = text.replace("require trainable < 25%", "")
    plan = lorakit.plan(bare, model)
    assert f"{plan.trainable:,} parameters" in text
    assert "quant" not in text


def test_a_large_model_starts_with_qlora() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model: Any = LlamaForCausalLM(LlamaConfig(num_hidden_layers=32, vocab_size=1000))
        model.to(torch.bfloat16)
    plugins = default_plugins()
    text = starter_spec(read_inventory(model, plugins), plugins)
    plan = lorakit.plan(text, model)
    assert all(entry.quant is not None and entry.quant.double for entry in plan.entries)
    assert all(entry.adapter is not None and entry.adapter.paged for entry in plan.entries)


def test_a_model_without_layers_has_no_starter() -> None:
    plugins = default_plugins()
    with pytest.raises(lorakit.ModelError, match="no layer that an adapter fits"):
        starter_spec(read_inventory(nn.Sequential(nn.ReLU()), plugins), plugins)


def test_init_on_the_command_line(llama_folder: Path, tmp_path: Path) -> None:
    spec = tmp_path / "start.lora"
    lorakit_command("init", llama_folder, "-o", spec)
    lorakit_command("fmt", "--check", spec)
    lorakit_command("check", spec)
    assert "exists" in lorakit_command("init", llama_folder, "-o", spec, code=2).stderr
    assert lorakit_command("init", llama_folder).stdout == spec.read_text()
