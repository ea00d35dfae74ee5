"""Runs that are killed go on from their last whole checkpoint, end with the same bits, and leave nothing behind.

The long form: `LORAKIT_KILLS=100 pytest --slow tests/test_killed.py`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import faults
import pytest
from forked import Child, Nursery

from helpers import make_llama
from lorakit import last_checkpoint
from lorakit.artifacts.owning import owned
from lorakit.trainers.checkpoints import checkpoint_steps

KILLS = int(os.environ.get("LORAKIT_KILLS", "100"))
CHAIN = 4
OWN = """
import lorakit, torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
model = lorakit.apply("adapt q_proj,v_proj rank 4 dropout 0.1", AutoModelForCausalLM.from_pretrained({model!r}))
rows = [dict(input_ids=row, labels=row) for row in torch.arange(320).reshape(32, 10)]
arguments = TrainingArguments(
    {run!r}, max_steps=12, per_device_train_batch_size=2, save_strategy="steps", save_steps=2, save_total_limit=2,
    report_to="none", disable_tqdm=True, use_cpu=True,
)
trainer = Trainer(model, arguments, train_dataset=rows, optimizers=(lorakit.optimizer(model, lr=5e-3), None))
trainer.train(resume_from_checkpoint=lorakit.last_checkpoint({run!r}, before=12))
lorakit.save(model, {out!r})
"""


@dataclass(frozen=True)
class Kind:
    """A way to train into `root/out`, with checkpoints in `root/CHECKPOINTS`."""

    nursery: Nursery
    inputs: Path
    name: str

    @property
    def checkpoints(self) -> str:
        return "run" if self.name == "own Trainer" else "out-checkpoints"

    def compare(self, root: Path, whole: Unbroken) -> None:
        """See that what is there is what an unbroken run leaves, to the bit."""
        found, expected = left(root), whole.left
        if self.name == "own Trainer":
            # Trainer removes old checkpoints file by file, and when killed at it does not take it up again
            assert last_checkpoint(root / "run") == str(root / "run" / "checkpoint-12")
            ours = ("out", "run/checkpoint-12")
            found, expected = ({k: v for k, v in one.items() if k.startswith(ours)} for one in (found, expected))
        assert found == expected

    def start(self, root: Path, before: str = "", *more: object) -> Child:
        """Begin, or go on where there is anything to go on from."""
        if self.name == "own Trainer":
            words = {"model": str(self.inputs / "llama"), "run": str(root / "run"), "out": str(root / "out")}
            return self.nursery.start(before + OWN.format(**words))
        here = self.inputs
        given: list[object] = [here / "llama.lora", here / "llama", here / "data.jsonl", "--steps", 12, "--tokens", 16]
        if self.name == "plain":
            given = [here / "net.lora", f"{here / 'net.py'}:net", f"{here / 'net.py'}:pairs", "--steps", 30]
        resume = ["--resume"] * (root / self.checkpoints).exists()
        common = ["-o", root / "out", "--save-every", 2, "--held-out", 0, "--batch", 2, *resume, *more]
        return self.nursery.command("train", *given, *common, before=before)


KINDS = ("Trainer", "plain", "own Trainer")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, nursery: Nursery, inputs: Path) -> Kind:
    return Kind(nursery, inputs, request.param)


@pytest.fixture(scope="module")
def whole(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    return unbroken(kind, tmp_path_factory.mktemp("unbroken") / "root")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def left(root: Path) -> dict[str, bytes]:
    """Return every file below a folder that says what was learned, and the name of every other."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.name == "adapter_model.safetensors" else b""
        for path in sorted(root.rglob("*"))
    }


@dataclass
class Unbroken:
    left: dict[str, bytes]
    seconds: float
    operations: int


def unbroken(kind: Kind, root: Path) -> Unbroken:
    root.mkdir()
    before, log = time.monotonic(), root.with_name("log")
    child = kind.start(root, faults.at(root, 0, "SIGKILL", log))
    assert child.wait() == 0, child.err
    return Unbroken(left(root), time.monotonic() - before, len(log.read_text().splitlines()))


def state(child: Child) -> str:
    """Return what the kernel says of a process: Z for one that has ended, T for one that is stopped."""
    return Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0]


def chain(kind: Kind, root: Path, whole: Unbroken, kills: int, draw: random.Random) -> int:
    """Kill runs at so many moments; those that come to their end have to end as if none were. Return how many did."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    killed = ends = 0
    while True:
        if killed == kills:
            child = kind.start(root)
        elif draw.random() < 0.5:
            number = draw.randint(1, whole.operations)
            child = kind.start(root, faults.at(root, number, "SIGKILL", root.with_name("log")))
        else:
            child, begun = kind.start(root), time.monotonic()
            moment = begun + draw.uniform(0, whole.seconds)
            while time.monotonic() < moment and state(child) != "Z":
                time.sleep(0.002)
            if state(child) == "Z":
                # on a machine that has less to do by now, moments are drawn from a shorter time
                whole.seconds = min(whole.seconds, time.monotonic() - begun)
            else:
                child.kill()
        ended = child.wait()
        if ended == -signal.SIGKILL:
            killed += 1
            if not (root / "out").exists():
                continue
            # all was done but the clearing up, which is for the next run to the same place
            with owned(root / "out"), owned(root / kind.checkpoints):
                pass
        else:
            assert ended == 0, child.err
        kind.compare(root, whole)
        ends += 1
        if killed == kills:
            return ends
        shutil.rmtree(root)
        root.mkdir()


def test_a_run_that_is_killed_goes_on_to_the_same_bits(kind: Kind, whole: Unbroken, root: Path) -> None:
    assert chain(kind, root, whole, CHAIN, random.Random(kind.name)) > 0


@pytest.mark.slow
def test_runs_killed_at_many_moments_go_on_to_the_same_bits(
    kind: Kind, whole: Unbroken, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(f"long {kind.name}")
    ends = 0
    for killed in range(CHAIN, KILLS + CHAIN, CHAIN):
        ends += chain(kind, root, whole, CHAIN, draw)
        with capsys.disabled():
            print(f"{kind.name}: {killed} kills, {ends} runs that ended, each with the bits of the unbroken one")


COMMANDS = pytest.mark.parametrize("kind", ["Trainer", "plain"], indirect=True, scope="module")


@pytest.mark.parametrize(
    ("kind", "name"), [("Trainer", "SIGTERM"), ("plain", "SIGHUP")], indirect=["kind"], scope="module"
)
def test_a_signal_to_end_stops_with_a_checkpoint(name: str, kind: Kind, whole: Unbroken, root: Path) -> None:
    number = whole.operations // 2
    child = kind.start(root, faults.at(root, number, name, root.with_name("log")))
    assert child.wait() == 128 + getattr(signal, name), child.err
    assert "--resume goes on from there" in child.out and child.err == "", child.err
    assert sorted(path.name for path in root.iterdir()) == ["out-checkpoints"]
    steps = checkpoint_steps(root / "out-checkpoints")
    assert f"stopped after step {max(steps)};" in child.out
    child = kind.start(root)
    assert child.wait() == 0, child.err
    assert left(root)["out/adapter_model.safetensors"] == whole.left["out/adapter_model.safetensors"]


@pytest.mark.parametrize("kind", ["plain"], indirect=True, scope="module")
def test_a_second_run_is_refused_while_the_first_is_there(kind: Kind, whole: Unbroken, root: Path) -> None:
    first = kind.start(root, faults.at(root, whole.operations // 2, "SIGSTOP", root.with_name("log")))
    while state(first) != "T":
        time.sleep(0.01)
    for more in ([], ["--force"]):
        second = kind.start(root, "", *more)
        assert second.wait() == 2 and second.out == ""
        assert second.err.startswith("error: ") and f"by process {first.pid} on " in second.err, second.err
    first.kill()
    assert first.wait() == -signal.SIGKILL
    third = kind.start(root)
    assert third.wait() == 0, third.err
    assert left(root) == whole.left


@COMMANDS
def test_a_run_goes_on_from_the_last_checkpoint_that_is_whole(kind: Kind, whole: Unbroken, root: Path) -> None:
    child = kind.start(root)
    assert child.wait() == 0, child.err
    last = max(checkpoint_steps(root / "out-checkpoints").items())[1]
    for damaged in (False, True):
        shutil.rmtree(root / "out")
        if damaged:
            cut("adapter_model.safetensors")(last)
        child = kind.start(root)
        assert child.wait() == 0 and ("is not whole (adapter_model.safetensors is cut short)" in child.err) == damaged
        assert left(root) == whole.left


def half_written(checkpoint: Path) -> None:
    (checkpoint / "trainer_state.json").unlink()


def cut(name: str) -> Callable[[Path], None]:
    return lambda checkpoint: os.truncate(checkpoint / name, (checkpoint / name).stat().st_size // 2)


@pytest.mark.parametrize(
    "damage",
    [half_written, cut("trainer_state.json"), cut("optimizer.pt"), cut("rng_state.pth"), cut("model.safetensors")],
)
def test_a_checkpoint_that_is_not_whole_is_passed_over(
    damage: Callable[[Path], None], tmp_path: Path, made_checkpoints: Path
) -> None:
    run = Path(shutil.copytree(made_checkpoints, tmp_path / "run"))
    assert last_checkpoint(run) == str(run / "checkpoint-4")
    assert last_checkpoint(run, before=4) == str(run / "checkpoint-2")
    damage(run / "checkpoint-4")
    (run / "checkpoint-x").mkdir()
    assert last_checkpoint(run) == str(run / "checkpoint-2")
    damage(run / "checkpoint-2")
    assert last_checkpoint(run) is None and last_checkpoint(tmp_path / "none") is None


@pytest.fixture(scope="module")
def made_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from test_training import trainer

    import lorakit

    folder = tmp_path_factory.mktemp("made")
    model = lorakit.apply("adapt q_proj,v_proj rank 4", make_llama())
    trainer(model, folder, steps=4, save_strategy="steps", save_steps=2).train()
    return folder
