"""`lorakit train` in two processes: what one process learns with the same rows a step, told and written once."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from together import expect_none
from together import run as run_together

import lorakit
from helpers import NET, byte_tokenizer, make_llama
from lorakit.cli.main import app
from lorakit.trainers import plain_checkpoints
from lorakit.trainers.checkpoints import Checkpoints
from lorakit.trainers.generators import save_generators

SPECS = {
    "fp32.lora": "adapt q_proj,v_proj rank 4 quant nf4 double dtype fp32\noptimizer adamw lr 1e-2\n",
    "bf16.lora": "adapt q_proj,v_proj rank 4 dtype bf16\noptimizer adamw lr 1e-3\n",
    # whose steps are as long as gradients are
    "net.lora": "adapt 0 rank 2\nadapt 2 rank 2 alpha 4\noptimizer sgd(momentum=0.9) lr 1e-2\n",
}
TEXT = ("llama", "data.jsonl", "--steps", "8", "--save-every", "4", "--held-out", "0")
# 22 pairs to train on: the last step of an epoch has one batch of the two, and that is no whole one
PAIRS = ("--held-out", "0.1", "--steps", "9", "--save-every", "3", "--max-grad-norm", "0")
ADAPTER = "adapter_model.safetensors"
LOSS = """
import os, torch

def loss(output, target):
    if os.environ["RANK"] == "1":
        raise ValueError("no loss today")
    return torch.nn.functional.mse_loss(output, target)
"""


def write_inputs(folder: Path) -> None:
    make_llama(vocab_size=320).save_pretrained(folder / "llama")
    byte_tokenizer().save_pretrained(folder / "llama")
    rows = [json.dumps({"text": f"hello {'wide ' * (number % 5)}world {number}"}) for number in range(32)]
    (folder / "data.jsonl").write_text("\n".join(rows))
    (folder / "net.py").write_text(NET.replace("0.5", "0.0"))
    (folder / "dropping.py").write_text(NET)
    (folder / "failing.py").write_text(LOSS)
    for name, text in SPECS.items():
        (folder / name).write_text(text)


def train(folder: Path, spec: str, what: tuple[str, ...], output: str, *options: str) -> str:
    """Run `lorakit train` in this process, and return what it printed."""
    out = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out):
        app.main(["train", spec, *what, "-o", output, *options], standalone_mode=False)
    return out.getvalue()


def net(name: str) -> tuple[str, ...]:
    return (f"{name}.py:net", f"{name}.py:pairs", *PAIRS)


def losses(folder: Path, output: str) -> list[float]:
    lines = (folder / output / "history.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


def expect_same(folder: Path, one: str, other: str, tolerance: float) -> None:
    mine, theirs = losses(folder, one), losses(folder, other)
    assert mine and mine == pytest.approx(theirs, abs=tolerance), f"{one} and {other} have other losses"
    values, others = load_file(folder / one / ADAPTER), load_file(folder / other / ADAPTER)
    assert values.keys() == others.keys()
    for name, value in values.items():
        torch.testing.assert_close(value, others[name], atol=tolerance, rtol=0)


def go_on_from(folder: Path, run: str, step: int, output: str) -> None:
    """Put beside an output that is to come the checkpoint of a run that ended after this step."""
    name = f"checkpoint-{step}"
    shutil.copytree(folder / f"{run}-checkpoints" / name, folder / f"{output}-checkpoints" / name)


def check_text(spec: str, folder: Path) -> None:
    said = train(folder, f"{spec}.lora", TEXT, f"{spec}-2", "--batch", "2")
    if dist.get_rank():
        assert not said
    else:
        assert "2 processes train together: the memory above is that of each" in said
        assert "batch 2 × accumulation 1 × 2 processes" in said and "8 steps of 4 rows" in said
        assert said.count("trained 8 steps") == 1


def check_goes_on(source: str, step: int, what: tuple[str, ...], spec: str, output: str, folder: Path) -> None:
    if dist.get_rank() == 0:
        go_on_from(folder, source, step, output)
    dist.barrier()
    train(folder, spec, what, output, "--resume", "--batch", "2")


def check_pairs(name: str, folder: Path) -> None:
    said = train(folder, "net.lora", net(name), f"{name}-2", "--batch", "2")
    assert bool(said) == (dist.get_rank() == 0)


def check_full_disk(then: str, folder: Path) -> None:
    """The second process alone cannot write what a checkpoint holds of it."""

    def save(place: Path, rank: int = 0) -> None:
        if rank == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_generators(place, rank)

    train_it = functools.partial(
        train, folder, "net.lora", net("net"), f"full-{then}", "--batch", "2", "--on-failed-checkpoint", then
    )
    with mock.patch.object(plain_checkpoints, "save_generators", save):
        if then == "go-on":
            train_it()
            return
        with pytest.raises(lorakit.WriteError, match="No space left.*no whole checkpoint is there"):
            train_it()


CHECKS = {
    **{f"text {spec}": functools.partial(check_text, spec) for spec in ("fp32", "bf16")},
    **{f"pairs {name}": functools.partial(check_pairs, name) for name in ("net", "dropping")},
    "text 1 to 2": functools.partial(check_goes_on, "fp32-1", 4, TEXT, "fp32.lora", "fp32-1to2"),
    "pairs 1 to 2": functools.partial(check_goes_on, "net-1", 3, net("net"), "net.lora", "net-1to2"),
    "pairs 2 to 2": functools.partial(check_goes_on, "dropping-2", 6, net("dropping"), "net.lora", "dropping-2to2"),
    **{f"full {then}": functools.partial(check_full_disk, then) for then in ("go-on", "stop")},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("together")
    write_inputs(made)
    for spec in ("fp32", "bf16"):
        train(made, f"{spec}.lora", TEXT, f"{spec}-1", "--batch", "4")
    train(made, "net.lora", net("net"), "net-1", "--batch", "4")
    return made


@pytest.fixture(scope="module")
def failures(folder: Path) -> Iterator[dict[str, str]]:
    yield run_together(CHECKS, folder)


@pytest.mark.parametrize("spec, tolerance", [("fp32", 1e-5), ("bf16", 1e-4)])
def test_a_language_model_learns_as_in_one_process(
    spec: str, tolerance: float, folder: Path, failures: dict[str, str]
) -> None:
    expect_none(failures[f"text {spec}"])
    if spec == "bf16":
        # weights are a step of bf16 apart where a sum was rounded otherwise
        assert losses(folder, "bf16-2") == pytest.approx(losses(folder, "bf16-1"), abs=tolerance)
    else:
        expect_same(folder, "fp32-2", "fp32-1", tolerance)
    names = {path.name for path in (folder / f"{spec}-2").iterdir()}
    assert names == {path.name for path in (folder / f"{spec}-1").iterdir()}
    assert json.loads((folder / f"{spec}-2" / "training.json").read_text())["settings"]["processes"] == 2


def test_a_plain_model_learns_as_in_one_process(folder: Path, failures: dict[str, str]) -> None:
    expect_none(failures["pairs net"])
    expect_same(folder, "net-2", "net-1", 1e-5)
    measured = [json.loads((folder / run / "training.json").read_text())["result"] for run in ("net-1", "net-2")]
    assert measured[0]["held_out_after"] == pytest.approx(measured[1]["held_out_after"], abs=1e-5)
    assert measured[0]["rows"] == measured[1]["rows"]


@pytest.mark.parametrize("kind, spec, step", [("text", "fp32", 4), ("pairs", "net", 3)])
def test_runs_go_on_in_another_number_of_processes(
    kind: str, spec: str, step: int, folder: Path, failures: dict[str, str]
) -> None:
    expect_none(failures[f"{kind} 1 to 2"])
    expect_same(folder, f"{spec}-1to2", f"{spec}-1", 1e-5)
    go_on_from(folder, f"{spec}-2", step, f"{spec}-2to1")
    what = TEXT if kind == "text" else net("net")
    train(folder, f"{spec}.lora", what, f"{spec}-2to1", "--resume", "--batch", "4")
    expect_same(folder, f"{spec}-2to1", f"{spec}-1", 1e-5)


def test_what_lacks_the_generators_of_one_process_is_passed_over(
    folder: Path, tmp_path: Path, failures: dict[str, str]
) -> None:
    expect_none(failures["pairs dropping"] or failures["text fp32"])
    for run, file in (("dropping-2", "generators-1.safetensors"), ("fp32-2", "rng_state_1.pth")):
        work = Path(shutil.copytree(folder / f"{run}-checkpoints", tmp_path / run))
        before, last = sorted(path.name for path in work.iterdir())
        said: list[str] = []
        assert Checkpoints(work, goes_on=False, say=said.append).last() == work / last and not said
        (work / last / file).unlink()
        assert Checkpoints(work, goes_on=False, say=said.append).last() == work / before
        assert f"{last} is not whole (no {file}), and is passed over" in said[0]


def test_dropout_goes_on_in_each_process_where_it_stood(folder: Path, failures: dict[str, str]) -> None:
    expect_none(failures["pairs dropping"] or failures["pairs 2 to 2"])
    expect_same(folder, "dropping-2to2", "dropping-2", 0.0)


def test_a_checkpoint_that_one_process_cannot_write_is_none(folder: Path, failures: dict[str, str]) -> None:
    expect_none(failures["full go-on"] or failures["full stop"])
    assert (folder / "full-go-on" / ADAPTER).is_file() and not (folder / "full-stop").exists()
    assert not list((folder).glob("full-*-checkpoints/checkpoint-*"))


def launched(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("WORLD_SIZE", None)
    return subprocess.run([sys.executable, "-m", *command], cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    "said, told",
    [
        (
            {"ACCELERATE_USE_FSDP": "true"},
            "accelerate is told to train by FSDP.*--multi_gpu, or a script.*lorakit.shard",
        ),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT is not set: start"),
    ],
)
def test_what_a_launcher_says_is_looked_at_first(
    said: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(lorakit.DataError, match=told):
        app.main(["train", "a.lora", "model", "data.jsonl", "-o", "out"], standalone_mode=False)


TORCHRUN = ("torch.distributed.run", "--nproc-per-node", "2")
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")


def test_accelerate_launches_it_unchanged(folder: Path, failures: dict[str, str]) -> None:
    done = launched(folder, *ACCELERATE, "-m", "lorakit", "train", "fp32.lora", *TEXT, "-o", "launched", "--batch", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("plan for LlamaForCausalLM") == 1 and done.stdout.count("trained 8 steps") == 1
    expect_same(folder, "launched", "fp32-2", 0.0)


def test_torchrun_ends_with_the_one_message_of_the_process_that_failed(folder: Path) -> None:
    loss: tuple[Any, ...] = ("--loss", "failing.py:loss", "--batch", "2")
    done = launched(folder, *TORCHRUN, "-m", "lorakit", "train", "net.lora", *net("net"), "-o", "failed", *loss)
    assert done.returncode == 1
    # what torchrun says itself stands in a frame of its own, with a traceback of torchrun's
    said = done.stderr.partition("ChildFailedError")[0]
    assert said.count("error: the loss does not take (prediction, target)") == 1 and said.count("error: ") == 1
    assert "no loss today" in said and f"{Path('lorakit', 'cli')}" not in said
    assert not (folder / "failed").exists() and not (folder / "failed-checkpoints").exists()
