"""Disks that fail and fill: every command leaves the old or the new, never half, and says one thing.

The long form, every operation and every limit: `pytest --slow tests/test_failing_disks.py`.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import faults
import pytest
from forked import Child, Nursery

from lorakit.artifacts.folders import write_text
from lorakit.artifacts.owning import owned
from lorakit.errors import WriteError
from lorakit.trainers.checkpoints import checkpoint_steps, why_not_whole

OUT, STEPS = "out", ["--steps", 4, "--save-every", 2, "--held-out", 0, "--batch", 2, "--tokens", 16]
Words = Callable[[Path, Path], Sequence[object]]
# every command that writes, given its inputs and its output
COMMANDS: Mapping[str, Words] = {
    "apply": lambda here, out: ["apply", here / "nf4.lora", here / "llama", "-o", out, "--with-base", "--force"],
    "apply to a net": lambda here, out: ["apply", here / "net.lora", f"{here / 'net.py'}:net", "-o", out, "--force"],
    "train": lambda here, out: [
        "train", here / "llama.lora", here / "llama", here / "data.jsonl", "-o", out, "--force", *STEPS
    ],
    "train a net": lambda here, out: [
        "train", here / "net.lora", f"{here / 'net.py'}:net", f"{here / 'net.py'}:pairs", "-o", out, "--force", *STEPS
    ],
    "merge": lambda here, out: ["merge", here / "adapter", here / "llama", "-o", out, "--force"],
    "merge a net": lambda here, out: ["merge", here / "net-adapter", f"{here / 'net.py'}:net", "-o", out, "--force"],
    "export": lambda here, out: ["export", here / "adapter", here / "llama", "-o", out, "--force"],
    "init": lambda here, out: ["init", here / "llama", "-o", out, "--force"],
    "fmt": lambda here, out: ["fmt", out],
    "plugins new": lambda here, out: ["plugins", "new", "quantizer", "rounded", "-o", out, "--force"],
    "inspect --plot": lambda here, out: [
        "inspect", "--quant", here / "nf4.lora", here / "llama", "--plot", out.with_suffix(".png")
    ],
}  # fmt: skip
SMALL = ("apply to a net", "init", "fmt", "plugins new", "merge a net")
RECORD = ("README.md", "history.jsonl", "training.json")
OLD_SPEC = "adapt   q_proj rank 4\n"


@pytest.fixture(scope="module")
def given(inputs: Path, nursery: Nursery) -> Path:
    (inputs / "nf4.lora").write_text("adapt q_proj rank 4 quant nf4\n")
    nursery.done("apply", inputs / "llama.lora", inputs / "llama", "-o", inputs / "adapter", "--force")
    nursery.done("apply", inputs / "net.lora", f"{inputs / 'net.py'}:net", "-o", inputs / "net-adapter", "--force")
    return inputs


def timeless(path: Path) -> bytes:
    """Return what a file holds, of the record of a run without its numbers: they tell how long it took."""
    content = path.read_bytes()
    return re.sub(rb"\(?[0-9a-f]{64}\)?|[\d.]+", b"#", content) if path.name in RECORD else content


@dataclass
class Case:
    """A command that writes over something old, as often as is asked."""

    nursery: Nursery
    given: Path
    name: str
    root: Path

    @property
    def out(self) -> Path:
        return self.root / (f"{OUT}.png" if "plot" in self.name else OUT)

    def run(self, before: str = "") -> tuple[int, Child]:
        """Run the command over what is old, after some code."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        if self.name in ("init", "fmt", "export", "inspect --plot"):
            self.out.write_text(OLD_SPEC)
        else:
            self.out.mkdir()
            (self.out / "old").write_text("old")
        child = self.nursery.command(*COMMANDS[self.name](self.given, self.root / OUT), before=before)
        return child.wait(), child

    def content(self) -> dict[str, bytes]:
        files = [self.out] if self.out.is_file() else sorted(path for path in self.out.rglob("*") if path.is_file())
        return {str(path.relative_to(self.root)): timeless(path) for path in files}

    def check(self, code: int, child: Child, new: dict[str, bytes], what: str) -> None:
        """See that there is the old or the new, that a failure is one message, and that the next run clears up."""
        old = {OUT + self.out.suffix: OLD_SPEC.encode()} if self.out.is_file() else {f"{OUT}/old": b"old"}
        content = self.content()
        differ = [name for name in content.keys() | new.keys() if content.get(name) != new.get(name)]
        said = f"{self.name}, {what}: {code}, not the new: {differ}\n{child.out[-500:]}\n{child.err[-3000:]}"
        assert content in (old, new), said
        assert (code == 0 and content == new) or code in (1, 2), said
        # of a spec that cannot be read it is a diagnostic
        messages = re.findall(r"^error(?:\[L\d+\])?: ", child.err, re.MULTILINE)
        assert len(messages) == (code != 0) and "Traceback" not in child.err, said
        if code and content == new != old:
            assert "is the new one" in child.err or "train" in self.name, said
        for checkpoint in checkpoint_steps(self.root / f"{OUT}-checkpoints").values():
            assert not why_not_whole(checkpoint), said
        with owned(self.out), owned(self.root / f"{OUT}-checkpoints"):
            pass
        left = {path.name for path in self.root.iterdir()}
        assert left <= {self.out.name, f"{OUT}-checkpoints"}, said


# it takes a second to draw
IN_TURN = [pytest.param(name, marks=[pytest.mark.slow] * ("plot" in name)) for name in COMMANDS]


@pytest.fixture(params=IN_TURN)
def case(request: pytest.FixtureRequest, nursery: Nursery, given: Path, tmp_path: Path) -> Case:
    if "plot" in request.param:
        pytest.importorskip("matplotlib")
    if request.param == "export":
        pytest.importorskip("gguf")
    return Case(nursery, given, request.param, tmp_path / "root")


_unbroken: dict[tuple[str, Path], tuple[dict[str, bytes], list[str]]] = {}


def unbroken(case: Case, log: Path) -> tuple[dict[str, bytes], list[str]]:
    """Return what a command writes, and its operations on files."""
    # a record of a run names the place
    key = (case.name, case.root)
    if key not in _unbroken:
        code, child = case.run(faults.at(case.root, 0, "EIO", log))
        assert code == 0, child.err
        _unbroken[key] = case.content(), log.read_text().splitlines()
    return _unbroken[key]


def fail_at(case: Case, numbers: Sequence[int], operations: Sequence[str], new: dict[str, bytes], log: Path) -> None:
    for number in numbers:
        what = ("EIO", "ENOSPC")[number % 2]
        code, child = case.run(faults.at(case.root, number, what, log))
        case.check(code, child, new, f"{what} at {number}, {operations[number - 1]}")


def test_an_error_at_an_operation_leaves_the_old_or_the_new(case: Case, tmp_path: Path) -> None:
    new, operations = unbroken(case, tmp_path / "log")
    draw = random.Random(case.name)
    # what is flushed and put in its place, or any other
    flushed = [number for number, name in enumerate(operations, 1) if name.startswith(("fsync", "exchange"))]
    fail_at(
        case, [draw.choice([draw.choice(flushed), draw.randint(1, len(operations))])], operations, new, tmp_path / "log"
    )


@pytest.mark.slow
def test_an_error_at_every_operation_leaves_the_old_or_the_new(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, operations = unbroken(case, tmp_path / "log")
    fail_at(case, range(1, len(operations) + 1), operations, new, tmp_path / "log")
    with capsys.disabled():
        print(f"\n{case.name}: an error at each of {len(operations)} operations")


def limited(limit: int) -> str:
    """Return code after which no file may be longer, as on a disk that fills."""
    return f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"


def test_a_limit_to_what_is_written_leaves_the_old_or_the_new(case: Case, tmp_path: Path) -> None:
    new, _ = unbroken(case, tmp_path / "log")
    most = max(map(len, new.values()))
    limit = random.Random(case.name).randrange(most)
    code, child = case.run(limited(limit))
    assert code == 1, (limit, most, child.err)
    case.check(code, child, new, f"{limit} of {most} bytes")


@pytest.mark.slow
@pytest.mark.parametrize("case", SMALL, indirect=True)
def test_a_limit_every_61_bytes_leaves_the_old_or_the_new(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, _ = unbroken(case, tmp_path / "log")
    most = max(map(len, new.values()))
    limits = range(0, most, 61)
    for limit in limits:
        code, child = case.run(limited(limit))
        assert code == 1, (limit, most, child.err)
        case.check(code, child, new, f"{limit} of {most} bytes")
    with capsys.disabled():
        print(f"\n{case.name}: {len(limits)} limits")


@pytest.mark.parametrize("case", ["merge", "fmt"], indirect=True)
def test_a_command_that_is_ended_leaves_the_old_and_nothing_beside_it(case: Case, tmp_path: Path) -> None:
    _, operations = unbroken(case, tmp_path / "log")
    number = next(number for number, name in enumerate(operations, 1) if "fsync" in name)
    code, child = case.run(faults.at(case.root, number, "SIGTERM", tmp_path / "log"))
    assert code == 143 and child.err == "error: ended by SIGTERM\n", (code, child.err)
    assert [path.name for path in case.root.iterdir()] == [OUT]
    assert case.content() in ({OUT: OLD_SPEC.encode()}, {f"{OUT}/old": b"old"})


PRIMITIVES = """
import os, shutil, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import faults
from lorakit.artifacts.folders import new_file, new_folder
from lorakit.artifacts.owning import owned
from lorakit.errors import OutputError, WriteError

def write(root, kind):
    if kind == "file":
        with new_file(root / "out") as aside:
            aside.write_text("new")
    else:
        with new_folder(root / "out") as aside:
            (aside / "within").mkdir()
            (aside / "one").write_text("new")
            (aside / "within" / "two").write_text("new")

def content(root):
    return {{p.name: p.read_text() for p in (root / "out").rglob("*") if p.is_file()}} or (root / "out").read_text()

tried = 0
root, log = Path({root!r}), {log!r}
for kind in ("file", "folder", "folder without exchange"):
    number = 0
    while True:
        number += 1
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        if kind == "file":
            (root / "out").write_text("old")
        else:
            (root / "out").mkdir()
            (root / "out" / "old").write_text("old")
        child = os.fork()
        if not child:
            if "without" in kind:
                from lorakit.artifacts import folders
                folders._exchange = lambda one, other: False
            faults.arm(str(root), number, "EIO", log)
            try:
                write(root, kind)
            except (OutputError, WriteError) as error:
                if "is the new one" in str(error):
                    os._exit(2)
                os._exit(1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        operations = Path(log).read_text().splitlines()
        if len(operations) < number:
            break
        tried += 1
        with owned(root / "out"):
            pass
        old = "old" if kind == "file" else {{"old": "old"}}
        new = "new" if kind == "file" else {{"one": "new", "two": "new"}}
        where = (kind, number, operations[number - 1], code, content(root))
        assert content(root) == (old if code == 1 else new), where
        assert os.listdir(root) == ["out"], (where, os.listdir(root))
print(tried)
"""


def test_folders_and_files_take_an_error_at_every_operation(tmp_path: Path) -> None:
    words = {"tests": str(faults.HERE), "root": str(tmp_path / "root"), "log": str(tmp_path / "log")}
    # a process without torch forks in a moment
    command = [sys.executable, "-c", PRIMITIVES.format(**words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and int(done.stdout) > 50, done.stderr


@pytest.mark.parametrize(
    ("call", "stands", "words"),
    [(1, "old", "did not take what was written .* is untouched"), (2, "new", "is the new one")],
)
def test_what_is_said_of_a_flush_that_fails_is_true(
    call: int, stands: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, calls = tmp_path / "file", [0]
    target.write_text("old")

    def fsync(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == call:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(WriteError, match=words) as failed:
        write_text(target, "new")
    assert target.read_text() == stands and os.listdir(tmp_path) == ["file"]
    assert ("untouched" in str(failed.value)) == (stands == "old")


@pytest.mark.parametrize(("kind", "choice"), [("train", "stop"), ("train a net", "go-on")])
def test_a_disk_that_is_full_for_a_checkpoint(
    kind: str, choice: str, nursery: Nursery, given: Path, tmp_path: Path
) -> None:
    out, checkpoints = tmp_path / "out", tmp_path / "out-checkpoints"
    words = [*COMMANDS[kind](given, out), "--on-failed-checkpoint", choice]
    nursery.done(*words)
    shutil.rmtree(out)
    # the adapter fits, and what the optimizer keeps does not
    most = max(
        path.stat().st_size for path in (checkpoints / min(map(str, checkpoint_steps(checkpoints).values()))).iterdir()
    )
    words[words.index("--steps") + 1] = 8
    code = 1 if choice == "stop" else 0
    child = nursery.done(*words, "--resume", before=limited(most - 1), code=code)
    kept = max(checkpoint_steps(checkpoints).items())
    assert kept[0] == (4 if kind == "train" else 2) and not why_not_whole(kept[1])
    assert f"{kept[1]} is the last whole checkpoint" in child.err, child.err
    if choice == "stop":
        assert child.err.startswith("error: ") and child.err.count("failed") == 1 and not out.exists()
    else:
        assert "training goes on" in child.err and json.loads((out / "adapter_config.json").read_text())
