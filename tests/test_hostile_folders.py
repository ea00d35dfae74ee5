"""Folders and models that nobody means well with: one LorakitError of a screen, soon, and the model as it was."""

from __future__ import annotations

import json
import os
import pickle
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz_folders import CONFIG, PLAN, WEIGHTS, every_value, faults, folders, fuzz, small
from safetensors.torch import load_file, save_file

import lorakit
from helpers import make_llama
from lorakit.artifacts.inspection import inspect_adapter
from lorakit.artifacts.json_files import MAX_BYTES, MAX_PLAN_BYTES
from lorakit.artifacts.reading import MAX_NAME, MAX_TENSORS
from lorakit.cli.inputs import read_spec
from lorakit.language.files import MAX_INCLUDE_DEPTH
from lorakit.language.regexes import MATCH_SECONDS, MAX_LENGTH, MAX_REPETITIONS, SECONDS
from lorakit.language.source import MAX_SIZE
from lorakit.language.targets import MAX_TARGETS

COUNT = int(os.environ.get("LORAKIT_FUZZ_FOLDERS", "5000"))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """An adapter folder that lorakit wrote."""
    return next(folders(tmp_path))


@pytest.fixture
def foreign(own: Path) -> Path:
    """The same as PEFT would have written it."""
    (own / PLAN).unlink()
    return own


def refused(folder: Path) -> str:
    """Return what `load` says of a folder, held against all that is promised of it."""
    assert list(faults(folder)) == []
    with pytest.raises(lorakit.LorakitError) as caught:
        lorakit.load(folder, small())
    return str(caught.value)


def changed(path: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text("utf-8"))
    change(value)
    path.write_text(json.dumps(value), "utf-8")


def test_fuzzing_folders_finds_nothing(tmp_path: Path) -> None:
    assert list(fuzz(400, 7, tmp_path)) == []


@pytest.mark.slow
def test_fuzzing_folders_for_long_finds_nothing(tmp_path: Path) -> None:
    assert list(fuzz(COUNT, 11, tmp_path)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [CONFIG, PLAN])
def test_every_value_in_every_place(name: str, own: Path) -> None:
    assert list(every_value(own, name)) == []


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("lora_alpha", float("nan"), "lora_alpha=nan; lora_alpha is a number"),
        ("lora_alpha", 10**400, "lora_alpha=an integer of more than 60 digits"),
        ("lora_alpha", "16", "lora_alpha='16'"),
        ("lora_dropout", 7, "lora_dropout=7; lora_dropout is at least 0 and below 1"),
        ("r", 0, "r=0; r is a whole number above 0"),
        ("bias", [], "bias=a list of 0; bias is none, all or lora_only"),
        ("use_rslora", "yes", "use_rslora='yes'"),
        ("alpha_pattern", [1], "alpha_pattern=a list of 1"),
        ("alpha_pattern", {"layers.0": "x" * 10**6}, "alpha_pattern['layers.0']="),
        ("alpha_pattern", {"(": 1}, "alpha_pattern: this is no regex"),
        ("alpha_pattern", {"(?:a{9}){9999}": 1}, "more than 10,000 repetitions"),
        ("rank_pattern", {"a": []}, "rank_pattern['a']=a list of 0"),
        ("target_parameters", 7, "target_parameters=7"),
        ("target_modules", [None], "target_modules=a list of 1; target_modules is a list of names, or an expression"),
        ("exclude_modules", [["a"]], "exclude_modules=a list of 1"),
        ("layers_to_transform", [True], "layers_to_transform=a list of 1"),
        ("layers_to_transform", "0", "layers_to_transform='0'; layers_to_transform is a number of a layer"),
        ("layers_pattern", 5, "layers_pattern=5"),
        ("peft_type", {"a": 1}, "peft_type=a dict of 1"),
        ("peft_type", "X" * 10**7, "is of PEFT type 'XXXX"),
        ("layer_replication", "y" * 10**7, "sets `layer_replication` to 'yyyy"),
        ("z" * 10**7, 1, "sets `zzzz"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_config_with_wrong_values_is_refused_at_its_field(
    field: str, value: object, complaint: str, foreign: Path
) -> None:
    changed(foreign / CONFIG, lambda config: config.update({field: value}))
    assert complaint in refused(foreign)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"r": 7}, "of rank 2 for `layers.0`, and its config says 7"),
        ({"r": None, "rank_pattern": {}}, "of rank 2 for `layers.0`, and its config says 8"),
        ({"rank_pattern": {r"layers\.[01]": 5}}, "of rank 2 for `layers.0`, and its config says 5"),
        ({"target_modules": ["layers.1"]}, "target_modules='layers.1', which leaves `layers.0` out"),
        ({"target_modules": []}, "target_modules='', which leaves `layers.0` out"),
        ({"exclude_modules": ["1", "5"]}, "exclude_modules='1, 5', which leaves `layers.1` out"),
        ({"modules_to_save": ["norm", "layers.1"]}, "trained `layers.1` in full (modules_to_save), and lacks its"),
    ],
    ids=str,
)
def test_a_config_that_says_something_else_than_the_tensors(
    fields: dict[str, object], complaint: str, foreign: Path
) -> None:
    """Where PEFT refuses it, or passes over tensors without a word."""
    changed(foreign / CONFIG, lambda config: config.update(fields))
    assert complaint in refused(foreign)


@pytest.mark.parametrize(
    "fields", [{"layers_to_transform": [1]}, {"layers_to_transform": 1, "layers_pattern": "layers"}]
)
def test_a_config_that_leaves_layers_out(fields: dict[str, object], tmp_path: Path) -> None:
    folder = lorakit.save(lorakit.apply("adapt q_proj rank 2", make_llama()), tmp_path / "adapter")
    (folder / PLAN).unlink()
    lorakit.load(folder, make_llama())
    changed(folder / CONFIG, lambda config: config.update(fields))
    with pytest.raises(lorakit.AdapterError, match=r"leaves `model.layers.0.self_attn.q_proj` out, and the file"):
        lorakit.load(folder, make_llama())


@pytest.mark.parametrize("pattern", [r"([a-z0-9_.]+)+!", r"(?:a|aa)+[!?]", r"(?:a+a+)+[!?]", r"(.*a){30}[!?]"])
def test_a_pattern_that_backtracks_ends_soon(pattern: str, foreign: Path) -> None:
    names = [f"base_model.model.{'a' * 100}.{number}.lora_{matrix}.weight" for number in range(40) for matrix in "AB"]
    save_file({name: torch.ones(1, 1) for name in names}, foreign / WEIGHTS)
    changed(foreign / CONFIG, lambda config: config.update(alpha_pattern={pattern: 1}))
    begun = time.process_time()
    try:
        inspect_adapter(foreign)
    except lorakit.AdapterError as error:
        assert f"alpha_pattern: the regex '{pattern}' takes too long" in str(error)
    else:
        # this one has nothing that an engine could rule out beforehand
        assert pattern != r"(?:a|aa)+[!?]"
    assert time.process_time() - begun < 8


@pytest.mark.parametrize("name", [CONFIG, PLAN])
@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, '{"a": ' + "9" * 5_000 + "}", "\ud800", "", "nul", '"' + "x" * 10**7,
     "[1]"],
    ids=lambda text: text[:10],
)  # fmt: skip
def test_json_that_is_none(name: str, text: str, own: Path) -> None:
    (own / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert name in refused(own)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        # found by fuzzing
        (lambda plan: plan["entries"][1]["adapter"].update(bias_parameters=2), "trains the bias of `layers.1`"),
        (lambda plan: plan["entries"][0]["adapter"]["settings"].update(rank=None), "does not fit `layers.0`"),
        (lambda plan: plan["entries"][0]["adapter"]["settings"].update(rank=10**400), "rank must be 1 or more"),
        (lambda plan: plan["entries"][0]["adapter"]["settings"].update(alpha=10**400), "no float is near"),
        (lambda plan: plan["entries"][0]["adapter"]["settings"].update(alpha=float("nan")), "alpha must be a number"),
        (lambda plan: plan["entries"][0]["adapter"]["settings"].update(dropout=7), "dropout must be"),
        (lambda plan: plan["entries"][0]["adapter"]["parameters"][0].update(shape=[10**9, 10**9]), "its method lora_A"),
        (
            lambda plan: plan["entries"][0]["adapter"]["parameters"][0].update(name="strength"),
            "the parameters strength",
        ),
        (lambda plan: plan["entries"][0]["adapter"]["method"].update(options=[["a", {}]]), "an option holds no object"),
        (lambda plan: plan["entries"][0].update(shape=None), "has no shape for it"),
        (lambda plan: plan.update(source=["x" * 10**7]), "source: expected str, found a list of 1"),
        (lambda plan: plan.update({"x" * 10**7: 1}), "Plan has no field 'xxxx"),
        (lambda plan: plan.update(version=[]), "this is no plan"),
    ],
)
def test_a_plan_with_wrong_values_is_refused_wherever_it_is_used(
    change: Callable[[Any], object], complaint: str, own: Path
) -> None:
    changed(own / PLAN, change)
    assert complaint in refused(own)


@pytest.mark.parametrize("kind", ["linear_transposed", "embedding", "nothing"])
def test_a_plan_of_another_kind_of_layer_is_for_another_model(kind: str, own: Path) -> None:
    # found by putting every value in every place
    changed(own / PLAN, lambda plan: plan["entries"][0]["shape"].update(kind=kind))
    assert "is for another model" in refused(own)


def test_the_readme_names_the_bounds() -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    for bound in (
        f"{MAX_TENSORS:,}, each with a name of {MAX_NAME:,} characters", f"{MAX_BYTES // 2**20} MiB",
        f"{MAX_PLAN_BYTES // 2**20} MiB", f"a spec | {MAX_SIZE // 2**20} MiB, {MAX_TARGETS:,} targets",
        f"includes {MAX_INCLUDE_DEPTH} deep", f"{MAX_LENGTH:,} characters, counts that multiply to {MAX_REPETITIONS:,}",
        f"{MATCH_SECONDS:g} s of processor time a name, {SECONDS:g} s in all",
    ):  # fmt: skip
        assert bound in text


def test_a_plan_from_a_file_that_fits_no_layer_is_a_plan_error(own: Path) -> None:
    changed(own / PLAN, lambda plan: plan["entries"][0]["adapter"]["settings"].update(rank=None))
    plan = read_spec(str(own / PLAN), ())
    for use in (lorakit.plan, lorakit.apply):
        with pytest.raises(lorakit.PlanError, match=r"`lora` does not fit `layers.0`"):
            use(plan, small())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda tensors, A, B: tensors.update({A: torch.ones(())}), "no lora_A of any rank"),
        (lambda tensors, A, B: tensors.update({A: torch.ones(0, 8)}), "(0, 8), which has no elements"),
        (lambda tensors, A, B: tensors.update({B: torch.ones(8, 0)}), "(8, 0), which has no elements"),
        (lambda tensors, A, B: tensors.update({A: torch.ones(2, 8, dtype=torch.int32)}), "is int32"),
        (lambda tensors, A, B: tensors.update({A: torch.ones(2, 8, dtype=torch.int64)}), "holds int64"),
        (lambda tensors, A, B: tensors.update({A: torch.ones(2, 8).to(torch.float8_e4m3fn)}), "is float8_e4m3fn"),
        (lambda tensors, A, B: tensors.update({A: torch.ones(2, 8, dtype=torch.complex64)}), "is complex64"),
        (lambda tensors, A, B: tensors.update({A: torch.full((2, 8), 1e300, dtype=torch.float64)}), "NaN or infinite"),
        (lambda tensors, A, B: tensors.update({B: torch.ones(3)}), "is for another model"),
        (lambda tensors, A, B: tensors.pop(B), "lacks 1 tensors"),
        (lambda tensors, A, B: tensors.update({A + ".base_layer" * 1000: torch.ones(1)}), "1,000 characters at most"),
    ],
)
def test_tensors_that_are_no_adapter_are_refused(change: Callable[..., object], complaint: str, foreign: Path) -> None:
    tensors = load_file(foreign / WEIGHTS)
    change(tensors, *(f"base_model.model.layers.0.lora_{matrix}.weight" for matrix in "AB"))
    save_file(tensors, foreign / WEIGHTS)
    assert complaint in refused(foreign)
    if "lacks" in complaint:
        with pytest.raises(lorakit.AdapterError, match="and no `.*lora_B"):
            inspect_adapter(foreign)


class Evil:
    """What unpickles into a call."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("exit 3",)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x80", b"cos\nsystem\n(S'exit 3'\ntR.", b"PK\x03\x04" + bytes(40), pickle.dumps({"a": 1}),
        pickle.dumps(Evil()), pickle.dumps([1]), b"\x80\x02" + b"(" * 100_000, b"\x80\x02h\x09.",
        b"\x80\x02\x95" + b"\xff" * 8,
    ],
)  # fmt: skip
def test_a_broken_pickle_is_an_adapter_error(data: bytes, foreign: Path) -> None:
    (foreign / WEIGHTS).unlink()
    (foreign / "adapter_model.bin").write_bytes(data)
    with pytest.raises(lorakit.AdapterError, match="adapter_model.bin"):
        lorakit.load(foreign, small(), allow_pickle=True)


@pytest.mark.parametrize("saved", [{"a": 1}, {1: torch.ones(1)}, [torch.ones(1)], {"a": torch.ones(2).to_sparse()}])
def test_a_pickle_of_something_else_is_an_adapter_error(saved: object, foreign: Path) -> None:
    (foreign / WEIGHTS).unlink()
    torch.save(saved, foreign / "adapter_model.bin")
    with pytest.raises(lorakit.AdapterError, match="adapter_model.bin"):
        lorakit.load(foreign, small(), allow_pickle=True)


def written(path: Path, count: int) -> None:
    """Write a safetensors file of so many empty tensors by hand."""
    names = (f"base_model.model.m{number}.lora_{matrix}.weight" for number in range(count // 2 + 1) for matrix in "AB")
    header = json.dumps({name: {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]} for name in names}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def test_a_flood_of_tensors_meets_a_limit_of_its_own(foreign: Path) -> None:
    written(foreign / WEIGHTS, MAX_TENSORS + 2)
    begun = time.process_time()
    with pytest.raises(lorakit.AdapterError, match=r"tensors; at most 300,000 are read"):
        lorakit.load(foreign, small())
    assert time.process_time() - begun < 10


def test_many_patterns_take_no_time_for_each_module(foreign: Path) -> None:
    count = 3_000
    tensors = {
        f"base_model.model.layers.{number // 9}.m{number}.lora_{matrix}.weight": torch.ones(1, 1)
        for number in range(count)
        for matrix in "AB"
    }
    save_file(tensors, foreign / WEIGHTS)
    patterns = {f"layers.{number // 9}.m{number}": number + 1 for number in range(count)}
    changed(foreign / CONFIG, lambda config: config.update(alpha_pattern=patterns, use_rslora=False))
    begun = time.process_time()
    found = inspect_adapter(foreign)
    assert [row.scaling for row in found.adapters] == [patterns[row.path] for row in found.adapters], (
        "each path is a pattern of its own"
    )
    assert time.process_time() - begun < 10


@pytest.mark.parametrize(
    ("patterns", "alpha"),
    [
        ({"layers.0": 3, "0": 5}, 3),
        ({"0": 5, "layers.0": 3}, 5),
        ({r"layers\.0": 3, "0": 5}, 3),
        ({"ayers.0": 3}, 8),
        ({"l.yers.0": 3}, 3),
        ({".*": 3, "0": 5}, 3),
        ({r"(layers\.)?0": 3}, 3),
        ({"layers.0.weight": 3}, 3),
        ({"LAYERS.0": 3, "layers0": 2, "ers.0": 4}, 8),
    ],
)
def test_patterns_are_looked_up_as_peft_does(patterns: dict[str, int], alpha: int, foreign: Path) -> None:
    changed(foreign / CONFIG, lambda config: config.update(alpha_pattern=patterns, lora_alpha=8, use_rslora=False))
    rows = {row.path: row for row in inspect_adapter(foreign).adapters}
    assert rows["layers.0"].scaling * rows["layers.0"].rank == alpha
