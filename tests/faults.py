"""Faults on purpose: an error at the n-th operation on files below a folder, or a signal to a group of processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorakit.artifacts import folders

HERE = Path(__file__).parent
# where the path stands in what an audit event says
OPERATIONS = {
    "open": 0, "os.rename": 0, "os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "os.link": 0, "os.symlink": 1,
    "os.truncate": 0, "os.chmod": 0, "os.listdir": 0, "os.scandir": 0, "os.utime": 0,
}  # fmt: skip


def at(folder: Path, number: int, what: str, log: Path) -> str:
    """Return code that has the n-th operation below a folder fail (`EIO`, …) or signal (`SIGKILL`, …); 0 is none.

    Operations are logged, a line for each.
    """
    return (
        f"import sys\nsys.path.insert(0, {str(HERE)!r})\nimport faults\n"
        f"faults.arm({str(folder)!r}, {number}, {what!r}, {str(log)!r})\n"
    )


def arm(folder: str, number: int, what: str, log: str) -> None:
    import errno

    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    count = 0

    def operation(name: str, path: Any) -> None:
        nonlocal count
        count += 1
        os.write(written, f"{name} {path}\n".encode(errors="backslashreplace"))
        if count == number:
            if what.startswith("SIG"):
                os.killpg(0, getattr(signal, what))
                return
            raise OSError(getattr(errno, what), os.strerror(getattr(errno, what)), path)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        place = OPERATIONS.get(event)
        if place is not None and str(arguments[place]).startswith(folder):
            operation(event, str(arguments[place]))

    def before(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            operation(name, None)
            return function(*arguments)

        return wrapped

    os.fsync = before("fsync", os.fsync)
    folders._exchange = before("exchange", folders._exchange)
    sys.addaudithook(hook)
