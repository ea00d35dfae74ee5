"""Places, bases and numbers that nobody means well with, and what errors say of them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from fuzz_folders import CONFIG, faults, folders, small
from torch import nn

import lorakit
from lorakit.artifacts.folders import check_output, new_file, new_folder
from lorakit.artifacts.inspection import inspect_adapter
from lorakit.cli.inputs import read_spec
from lorakit.cli.main import app


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """An adapter folder that lorakit wrote."""
    return next(folders(tmp_path))


def places(root: Path) -> dict[str, Path]:
    loop = root / "loop"
    loop.symlink_to(loop)
    (root / "file").write_text("text")
    return {
        "long": root / ("x" * 300),
        "loop": loop / "inside",
        "null": root / "a\0b",
        "surrogate": root / "\ud800",
        "file": root / "file" / "inside",
    }


@pytest.mark.parametrize("kind", ["long", "loop", "null", "surrogate", "file"])
def test_places_that_cannot_be(kind: str, tmp_path: Path) -> None:
    place, model = places(tmp_path)[kind], lorakit.apply("adapt layers[0] rank 2", small())
    for use in (
        lambda: lorakit.load(place, small()),
        lambda: inspect_adapter(place),
        lambda: lorakit.save(model, place),
        lambda: lorakit.parse(place),
        lambda: lorakit.plan("adapt layers[0] rank 2", str(place)),
        lambda: read_spec(f"{place}.json", ()),
    ):
        with pytest.raises(lorakit.LorakitError) as caught:
            use()
        str(caught.value).encode()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_refused(own: Path) -> None:
    for place in (own / CONFIG, own):
        place.chmod(0)
        with pytest.raises(lorakit.AdapterError, match="Permission denied"):
            lorakit.load(own, small())
        place.chmod(0o700)


@pytest.mark.parametrize(
    ("words", "out", "held"),
    [
        (["apply", "s.lora", "llama"], "llama", "llama"),
        (["apply", "s.lora", "llama"], "s.lora", "s.lora"),
        (["apply", "inside/s.lora", "llama"], "inside", "inside/s.lora"),
        (["apply", "net.lora", "net.py:net"], "net.py", "net.py"),
        (["apply", "s.lora", "link"], "llama", "link"),
        (["train", "s.lora", "llama", "data.jsonl"], "data.jsonl", "data.jsonl"),
        (
            ["train", "s.lora", "llama", "data.jsonl", "--held-out-data", "inside/held.jsonl"],
            "inside",
            "inside/held.jsonl",
        ),
        (["merge", "adapter", "llama"], "adapter", "adapter"),
        (["merge", "adapter", "llama"], "llama", "llama"),
        (["export", "adapter", "llama"], "llama", "llama"),
        (["init", "llama"], "llama", "llama"),
    ],
    ids=str,
)
def test_force_replaces_nothing_that_the_run_reads(
    words: list[str], out: str, held: str, tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(llama_folder.parent)
    Path("inside").mkdir()
    for name in ("s.lora", "inside/s.lora", "net.lora"):
        Path(name).write_text("adapt q_proj rank 2\n")
    for name in ("data.jsonl", "inside/held.jsonl", "net.py"):
        Path(name).write_text("")
    Path("link").symlink_to("llama")
    Path("adapter").mkdir()
    before = sorted(map(str, Path().rglob("*")))
    done = CliRunner().invoke(app, [*words, "-o", out, "--force"])
    assert isinstance(done.exception, lorakit.OutputError), done.output
    assert str(done.exception) == f"{out} holds {held}, which is read for it; give another place"
    assert sorted(map(str, Path().rglob("*"))) == before


@pytest.mark.parametrize("kind", ["link to a folder", "link to a file", "link to nothing", "loop", "file", "folder"])
def test_force_replaces_the_thing_itself_and_leaves_nothing_behind(kind: str, tmp_path: Path) -> None:
    other, target = tmp_path / "other", tmp_path / "out"
    match kind:
        case "link to a folder":
            other.mkdir()
            (other / "thesis.txt").write_text("years of work")
            target.symlink_to(other)
        case "link to a file":
            other.write_text("years of work")
            target.symlink_to(other)
        case "link to nothing":
            target.symlink_to(tmp_path / "nowhere")
        case "loop":
            target.symlink_to(target)
        case "file":
            target.write_text("old")
        case "folder":
            target.mkdir()
            (target / "old").write_text("old")
    with pytest.raises(lorakit.OutputError, match="exists"):
        check_output(target, force=False)
    check_output(target, force=True)
    with new_folder(target) as aside:
        (aside / "new").write_text("new")
    assert not target.is_symlink() and [path.name for path in target.iterdir()] == ["new"]
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "other"}
    if kind == "link to a folder":
        assert (other / "thesis.txt").read_text() == "years of work"


def test_a_file_with_a_name_that_is_too_long_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(lorakit.OutputError, match="too long"), new_file(tmp_path / ("x" * 252)):
        pass


def test_save_does_not_replace_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(lorakit.OutputError, match="leads nowhere"):
        lorakit.save(lorakit.apply("adapt layers[0] rank 2", small()), target)
    assert target.is_symlink()


def test_a_base_in_float64_is_adapted_in_float32(tmp_path: Path) -> None:
    model: Any = lorakit.apply("adapt layers[0] rank 2", small().double())
    assert model.layers[0].lora_A.dtype == torch.float32
    loaded = lorakit.load(lorakit.save(model, tmp_path / "adapter"), small().double())
    x = torch.ones(2, 8, dtype=torch.float64)
    assert torch.equal(model.eval()(x), loaded(x)) and torch.equal(lorakit.merge(loaded)(x), small().double()(x))


def test_a_start_that_overflows_is_refused_and_the_model_unchanged() -> None:
    model: Any = small()
    with pytest.raises(lorakit.PlanError, match=r"the start of `layers.0` gives `lora_A` NaN, or values that float32"):
        lorakit.apply("adapt layers[0] rank 2 init gaussian(sigma=1e39)", model)
    assert type(model.layers[0]) is nn.Linear
    with pytest.raises(lorakit.PlanError, match="float16"):
        lorakit.apply("adapt layers[0] rank 2 dtype fp16 init gaussian(sigma=1e6)", model)


@pytest.mark.parametrize(
    "spec", ["adapt layers[0] rank 1e400", "adapt layers[0] rank 2 alpha 1e39", "adapt layers[0] rank 2 dropout 7"]
)
def test_numbers_that_no_layer_takes(spec: str) -> None:
    with pytest.raises(lorakit.LorakitError) as caught:
        lorakit.apply(spec, small())
    assert len(str(caught.value)) < 500


def test_a_model_config_of_any_content_is_a_model_error(llama_folder: Path) -> None:
    original = json.loads((llama_folder / "config.json").read_text())
    for field, value in (
        ("hidden_size", "x"), ("num_hidden_layers", None), ("num_attention_heads", 0), ("architectures", 7),
        ("model_type", []), ("rope_parameters", [1]), ("dtype", "float7"), ("vocab_size", -1),
    ):  # fmt: skip
        (llama_folder / "config.json").write_text(json.dumps({**original, field: value}))
        try:
            lorakit.plan("adapt q_proj rank 2", str(llama_folder))
        except lorakit.LorakitError as error:
            assert str(error)


def test_an_error_quotes_a_screen_at_most_and_shows_what_a_terminal_would_obey() -> None:
    error = lorakit.AdapterError("no\x1b[2J" + "x" * 10**7 + "\nhelp: write less")
    assert str(error).startswith(r"no\x1b[2J") and str(error).endswith("help: write less") and len(str(error)) < 4_100
    assert len(str(lorakit.PlanError("line\n" * 10**6)).splitlines()) == 65
    str(lorakit.ModelError("\ud800")).encode()


def test_a_copy_of_a_folder_that_loads_still_loads(own: Path, tmp_path: Path) -> None:
    assert list(faults(Path(shutil.copytree(own, tmp_path / "copy")))) == []
    assert isinstance(lorakit.load(tmp_path / "copy", small()), nn.Module)
