"""A script, or a launcher of scripts, as a process of its own, in which every Python waits for its model."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorakit.errors import DataError
from lorakit.running.asked import FOLDER, Asked, Told, read_told

# of the interpreter that it stands in front of, when that starts
STARTUP = """from lorakit.running.startup import begin

begin({folder!r})
"""
SIGNALLED = 128


def command_of(words: Sequence[str]) -> list[str]:
    """Return the command that words mean: a script or `-m MODULE` for this Python, or a launcher.

    Raises: DataError if there is none.
    """
    first = words[0]
    if first == "-m":
        return [sys.executable, *words]
    if first.endswith(".py"):
        if not Path(first).is_file():
            raise DataError(f"no such script: {first}")
        return [sys.executable, *words]
    # of several environments this one's
    found = shutil.which(first, path=str(Path(sys.executable).parent)) or shutil.which(first)
    if found is None:
        raise DataError(
            f"no such command: {first}; after `--` stands a script such as train.py, `-m MODULE`, or a launcher such "
            "as `accelerate launch train.py`"
        )
    return [found, *words[1:]]


def run_command(words: Sequence[str], asked: Asked) -> tuple[int, Sequence[Told]]:
    """Run a command to its end; return its exit code, and what each Python in it told. Raises: DataError."""
    command = command_of(words)
    with tempfile.TemporaryDirectory(prefix="lorakit-run-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        asked.write(folder)
        (folder / "sitecustomize.py").write_text(STARTUP.format(folder=name), encoding="utf-8")
        paths = (name, *filter(None, [os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, FOLDER: name, "PYTHONPATH": os.pathsep.join(paths)}
        child = subprocess.Popen(command, env=environment)
        with _passed_on(child):
            code = child.wait()
        # as a shell tells of a signal
        return (SIGNALLED - code if code < 0 else code), read_told(folder)


@contextmanager
def _passed_on(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Leave it to a child how it ends: Ctrl-C reaches it by the terminal, other signals are sent on to it."""

    def send(number: int, frame: Any) -> None:
        child.send_signal(number)

    handlers: dict[int, Callable[[int, Any], None] | signal.Handlers] = {signal.SIGINT: signal.SIG_IGN}
    handlers |= {number: send for number in (signal.SIGTERM, getattr(signal, "SIGHUP", None)) if number is not None}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ending(told: Sequence[Told]) -> list[str]:
    """Return in lines what a run did: what was adapted, which optimizer ran, where the adapter lies."""
    adapted = [one for one in told if one.adapted]
    if not adapted:
        why = [f"  {line}" for one in told[:1] for line in one.left]
        return ["nothing was adapted: " + ("of the models that were loaded none is it" if why else NO_MODEL), *why]
    first = adapted[0]
    processes = f", in each of {len(adapted)} processes" if len(adapted) > 1 else ""
    return [
        f"adapted: {first.adapted}{processes}",
        *(f"left as it is: {line}" for line in first.left),
        f"optimizer: {first.optimizer or 'no step was taken with the adapters'}",
        f"adapter: {first.saved or 'nowhere: the script saved nothing; -o OUT writes it at the end'}",
    ]


NO_MODEL = (
    "no model came from transformers' `from_pretrained` or `from_config` in this Python and the environment's; "
    "for others there is `lorakit.apply`"
)
