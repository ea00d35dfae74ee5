"""Processes forked from one that has imported everything: cheap enough to be killed, or to fail, a hundred times.

Run as a program it is that process. It forks a child for each line of JSON on standard input, `{"code": …}`, and
answers with the child's id; `{"wait": id}` it answers with how that child ended and what it said, which is a pipe's
content at most. `{"import": name}` has it import what its children will need. A child has the folder and the
environment of the nursery, unless `cwd` and `environment` stand beside its code.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import importlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

COMMAND = "import sys\nsys.argv = {argv!r}\nfrom lorakit.cli.main import main\nmain()\n"


@dataclass
class Child:
    """A forked process, and once it has ended what it said."""

    pid: int
    nursery: Nursery
    out: str = ""
    err: str = ""

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal it and all that it started."""
        os.killpg(self.pid, number)

    def wait(self) -> int:
        """Return the exit code; for one that a signal ended, its number below zero."""
        code, self.out, self.err = self.nursery.ask({"wait": self.pid})
        return int(code)


class Nursery:
    """The process that forks."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        # its children end too suddenly to tell a tracer what they ran
        environment.pop("COVERAGE_PROCESS_CONFIG", None)
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, what: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def warm(self, *names: str) -> None:
        """Import modules that children will need."""
        for name in names:
            self.ask({"import": name})

    def start(self, code: str) -> Child:
        """Run Python code in a process of its own."""
        return Child(self.ask({"code": code}), self)

    def run(self, *argv: object, before: str = "", **place: Any) -> subprocess.CompletedProcess[str]:
        """Run the command line to its end as `subprocess.run` would."""
        return self.run_code(before + COMMAND.format(argv=["lorakit", *map(str, argv)]), **place)

    def run_code(self, code: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python code to its end: where this process is if no other folder is given, and traced if this one is."""
        child = self.place(code, cwd, **environment)
        status = child.wait()
        return subprocess.CompletedProcess(code, status, child.out, child.err)

    def place(self, code: str, cwd: Path | None = None, **environment: str) -> Child:
        """Begin Python code as `run_code` does."""
        place = {"cwd": str(cwd or Path.cwd()), "environment": {**os.environ, **environment}}
        return Child(self.ask({"code": code, **place}), self)

    def command(self, *argv: object, before: str = "") -> Child:
        """Run the command line in a process of its own, after some Python code."""
        words = ["lorakit", *map(str, argv)]
        return self.start(before + COMMAND.format(argv=words))

    def done(self, *argv: object, before: str = "", code: int = 0) -> Child:
        """Run the command line to its end, which has to be the exit code that is given."""
        child = self.command(*argv, before=before)
        ended = child.wait()
        assert ended == code, (ended, child.out, child.err)
        return child

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@functools.cache
def shared() -> Nursery:
    """Return the one nursery of this process, which is closed as the process ends."""
    made = Nursery()
    atexit.register(made.close)
    return made


def spawn(function: Callable[..., None], arguments: tuple[Any, ...], count: int) -> None:
    """Call a module's function with a rank and arguments in each of some processes, as torch's `spawn` does."""
    call = f"import pickle\nfunction, arguments = pickle.loads({pickle.dumps((function, arguments))!r})\n"
    code = f"import sys\nsys.path[:] = {sys.path!r}\n{call}"
    children = [shared().place(f"{code}function({rank}, *arguments)\n") for rank in range(count)]
    failed = [child.err for child in children if child.wait() != 0]
    assert not failed, "\n".join(failed)


def _run(asked: dict[str, Any], out: int, err: int) -> None:
    """Be the child: run the code, and leave with its exit code."""
    # what is asked of the nursery is nothing for a child to read
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    # the ones that are there remember what the first of them was
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    if "environment" in asked:
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.chdir(asked["cwd"])
    tracer = _tracer()
    status = 0
    try:
        exec(compile(asked["code"], "<forked>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException:
        traceback.print_exc()
        status = 70
    if tracer is not None:
        tracer.stop()
        tracer.save()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _tracer() -> Any:
    """Start what measures coverage, if the environment says that it is measured; it counts none of the imports."""
    if "COVERAGE_PROCESS_CONFIG" not in os.environ:
        return None
    import coverage

    return coverage.process_startup()


def _warm_up() -> None:
    """Import everything, and do once what is kept for the next time: a command then takes a third of its time."""
    from transformers import AutoTokenizer, Trainer  # noqa: F401

    import lorakit.trainers.huggingface_task
    import lorakit.trainers.plain_task  # noqa: F401
    from helpers import make_llama
    from lorakit.cli.main import app

    with TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(scratch)
        make_llama().save_pretrained(folder / "llama")
        (folder / "spec.lora").write_text("adapt q_proj rank 2 quant nf4\n")
        words = ["apply", folder / "spec.lora", folder / "llama", "-o", folder / "out"]
        app([*map(str, words)], standalone_mode=False)


def _serve() -> None:
    import torch

    torch.set_num_threads(1)
    _warm_up()
    # as a command from a shell has them, whatever began the tests
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    pipes: dict[int, tuple[int, int]] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        answer: Any
        if "wait" in asked:
            _, status = os.waitpid(asked["wait"], 0)
            said = []
            for end in pipes.pop(asked["wait"]):
                with os.fdopen(end, "rb") as stream:
                    said.append(stream.read().decode(errors="replace"))
            answer = [os.waitstatus_to_exitcode(status), *said]
        elif "import" in asked:
            answer = importlib.import_module(asked["import"]).__name__
        else:
            (out, out_in), (err, err_in) = os.pipe(), os.pipe()
            for end in (out_in, err_in):
                fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, 2**18)
            answer = os.fork()
            if answer == 0:
                _run(asked, out_in, err_in)
            # here, so that it is so before anybody may kill it
            os.setpgid(answer, answer)
            os.close(out_in)
            os.close(err_in)
            pipes[answer] = (out, err)
        sys.__stdout__.write(f"{json.dumps(answer)}\n")  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]


if __name__ == "__main__":
    _serve()
