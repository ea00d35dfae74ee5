"""One run at a time writes to a place: the second is refused and told by whom, and no kill leaves a place taken."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import lorakit
from lorakit.artifacts import folders, owning
from lorakit.artifacts.folders import claimed, new_file, new_folder
from lorakit.artifacts.owning import owned

HOLDER = """
import sys, time
from pathlib import Path
from lorakit.artifacts.folders import new_folder
with new_folder(Path(sys.argv[1])) as aside:
    (aside / "half").write_text("half")
    print("holds", flush=True)
    time.sleep(600)
"""
COUNTER = """
import sys, time
from pathlib import Path
import lorakit
from lorakit.artifacts.owning import owned
place, count = Path(sys.argv[1]), 0
while count < 30:
    try:
        with owned(place):
            before = int(place.read_text())
            time.sleep(0)
            place.write_text(str(before + 1))
        count += 1
    except lorakit.OutputError as refused:
        assert "is being written by" in str(refused), refused
        time.sleep(0.001)
"""


def holder(place: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(place)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "holds\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_second_is_refused_by_name_and_a_kill_leaves_the_place_free(tmp_path: Path) -> None:
    place = tmp_path / "out"
    first = holder(place)
    try:
        for use in (lambda: new_folder(place), lambda: new_file(place), lambda: claimed(place, force=False)):
            with pytest.raises(lorakit.OutputError) as refused, use():
                pass
            words = (f"process {first.pid} on {socket.gethostname()} since 20", " UTC", str(place))
            assert all(word in str(refused.value) for word in words), refused.value
    finally:
        first.kill()
        first.wait()
    # what the kill left lies there, and the next that owns the place clears it away
    assert len(names(tmp_path)) == 2
    with new_folder(place) as aside:
        (aside / "whole").write_text("whole")
    assert names(tmp_path) == ["out"] and names(place) == ["whole"]


def test_processes_that_want_one_place_take_turns(tmp_path: Path) -> None:
    place = tmp_path / "count"
    place.write_text("0")
    running = [subprocess.Popen([sys.executable, "-c", COUNTER, str(place)]) for _ in range(3)]
    assert [one.wait() for one in running] == [0, 0, 0]
    assert place.read_text() == "90" and names(tmp_path) == ["count"]


def test_a_thread_may_hold_a_place_again_and_another_may_not(tmp_path: Path) -> None:
    place = tmp_path / "out"
    refused: list[str] = []

    def other() -> None:
        try:
            with owned(place):
                pass
        except lorakit.OutputError as error:
            refused.append(str(error))

    with owned(place):
        with owned(place):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert os.listdir(tmp_path) == [".out.lock"]
    assert len(refused) == 1 and "another thread" in refused[0] and os.listdir(tmp_path) == []
    other()
    assert len(refused) == 1


def test_a_forked_process_does_not_keep_what_its_parent_holds(tmp_path: Path) -> None:
    place = tmp_path / "out"
    ready, go = os.pipe(), os.pipe()
    with owned(place):
        child = os.fork()
        if child == 0:
            os.close(go[1])
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
    # it lives on, and the place is free
    with owned(place):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert os.listdir(tmp_path) == []
    for end in (*ready, *go):
        os.close(end)


def test_only_what_is_left_of_the_same_place_is_swept(tmp_path: Path) -> None:
    for left in (".out.abcd_123.new", ".out.x.abcd_123.new", ".outer.abcd_123.new", ".out.new", ".out.20261126x.new"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "half").write_text("half")
    with owned(tmp_path / "out"):
        pass
    assert names(tmp_path) == [".out.20261126x.new", ".out.new", ".out.x.abcd_123.new", ".outer.abcd_123.new"]


def test_what_a_kill_left_under_another_name_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    place = tmp_path / "out"
    with new_folder(place) as aside:
        (aside / "first").write_text("first")

    renamed = Path.rename
    calls: list[Path] = []

    def rename(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return renamed(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), new_folder(place):
        patch.setattr(Path, "rename", rename)
    assert names(tmp_path) == [".out.old"]
    with pytest.raises(lorakit.OutputError, match="exists"), claimed(place, force=False):
        pass
    assert names(tmp_path) == ["out"] and names(place) == ["first"]


def test_a_disk_without_locks_is_written_with_a_word_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(descriptor: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(owning, "_lock", none)
    with new_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out"] and "on a disk without locks" in caplog.text


def test_folders_made_for_a_place_go_again_where_nothing_came_into_them(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "a" / "b" / "out", force=False):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("years of work")
    (tmp_path / ".out.lock").symlink_to(tmp_path / "mine.txt")
    with pytest.raises(lorakit.OutputError, match="cannot write to"), owned(tmp_path / "out"):
        pass
    assert (tmp_path / "mine.txt").read_text() == "years of work"


def test_what_is_in_the_making_knows_its_place(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a.dapter") as made:
        assert made.parent.parent == tmp_path and owning.place_of(made) == tmp_path / "a.dapter"
    assert owning.place_of(tmp_path / "a.dapter") == tmp_path / "a.dapter"
