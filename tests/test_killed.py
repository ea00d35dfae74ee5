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
from pathlib import Path

import faults
import pytest
from forked import Nursery
from killable import KINDS, Kind, Tally, Unbroken, chain, left, state, unbroken

from helpers import make_llama
from lorakit import last_checkpoint
from lorakit.trainers.checkpoints import begin, checkpoint_steps

KILLS = int(os.environ.get("LORAKIT_KILLS", "100"))
CHAIN = 3


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, nursery: Nursery, inputs: Path) -> Kind:
    return KINDS[request.param](nursery, inputs)


@pytest.fixture(scope="module")
def whole(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    return unbroken(kind, tmp_path_factory.mktemp("unbroken") / "root")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def test_a_run_that_is_killed_goes_on_to_the_same_bits(kind: Kind, whole: Unbroken, root: Path) -> None:
    tally = Tally()
    chain(kind, root, whole, CHAIN, random.Random(kind.name), tally)
    assert tally.kills == CHAIN and tally.ends > 0


@pytest.mark.slow
def test_runs_killed_at_many_moments_go_on_to_the_same_bits(
    kind: Kind, whole: Unbroken, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw, tally = random.Random(f"long {kind.name}"), Tally()
    while tally.kills < KILLS:
        chain(kind, root, whole, min(CHAIN, KILLS - tally.kills), draw, tally)
        with capsys.disabled():
            print(f"{kind.name}: {tally}", flush=True)


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


def test_one_process_does_not_wait_for_what_several_began(
    tmp_path: Path, made_checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(made_checkpoints, tmp_path / "run"))
    last = run / "checkpoint-4"
    whole = (last / "trainer_state.json").read_text()
    for found in (run / "checkpoint-2", last):
        for name in ("LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK"):
            if found == last:
                monkeypatch.delenv(name)
            else:
                monkeypatch.setenv(name, "2" if name == "LOCAL_WORLD_SIZE" else "0")
        begin(last)
        shutil.copy(last / "rng_state.pth", last / "rng_state_0.pth")
        (last / "trainer_state.json").write_text(whole)
        assert last_checkpoint(run) == str(found)


def test_trainer_does_not_go_on_from_what_one_process_did_not_write(
    tmp_path: Path, made_checkpoints: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from test_training import trainer

    import lorakit

    run = Path(shutil.copytree(made_checkpoints, tmp_path / "run"))
    last, state = run / "checkpoint-4", (run / "checkpoint-4" / "trainer_state.json").read_text()
    with monkeypatch.context() as two:
        for name in ("LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK"):
            two.setenv(name, "2" if name == "LOCAL_WORLD_SIZE" else "0")
        begin(last)
    shutil.copy(last / "rng_state.pth", last / "rng_state_0.pth")
    (last / "trainer_state.json").write_text(state)

    def go_on(checkpoint: str | bool) -> None:
        model = lorakit.apply("adapt q_proj,v_proj rank 4", make_llama())
        trainer(model, run, steps=6).train(resume_from_checkpoint=checkpoint)

    with pytest.raises(lorakit.AdapterError, match=r"-4 is not whole.*rng_state_1.pth.*checkpoint-2', the la"):
        go_on(True)
    go_on(str(last))
    assert "checkpoint-4 lacks rng_state_1.pth" in caplog.text
    shutil.copy(last / "rng_state.pth", last / "rng_state_1.pth")
    go_on(True)


@pytest.fixture(scope="module")
def made_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from test_training import trainer

    import lorakit

    folder = tmp_path_factory.mktemp("made")
    model = lorakit.apply("adapt q_proj,v_proj rank 4", make_llama())
    trainer(model, folder, steps=4, save_strategy="steps", save_steps=2).train()
    return folder


LATE = """
import os, signal, time
from pathlib import Path
from transformers import Trainer
save = Trainer._save_rng_state
def late(self, output_dir):
    # the other process is done with its checkpoint, and nobody waits for this one
    if os.environ["RANK"] == "1" and self.state.global_step == 4:
        state = Path(output_dir, "trainer_state.json")
        while not (state.exists() and "log_history" in state.read_text()):
            time.sleep(0.01)
        os.killpg(0, signal.SIGKILL)
    save(self, output_dir)
Trainer._save_rng_state = late
"""


@pytest.mark.parametrize("kind", ["torchrun"], indirect=True, scope="module")
def test_a_checkpoint_that_one_process_has_yet_to_write_to_is_passed_over(
    kind: Kind, whole: Unbroken, root: Path
) -> None:
    child = kind.start(root, LATE)
    assert child.wait() == -signal.SIGKILL, child.err
    assert last_checkpoint(root / "run") == str(root / "run" / "checkpoint-2")
    child = kind.start(root)
    assert child.wait() == 0, child.err
    kind.compare(root, whole)
