"""Places that one process writes at a time: a lock beside each, which the kernel lets go of however its holder ends."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from lorakit.errors import OutputError

logger = logging.getLogger(__name__)
# of a holder that has its lock and has yet to say who it is
SECONDS_TO_SAY_WHO = 1.0
# the places that this process holds: how often, and in which thread
_held: dict[Path, tuple[int, int, int]] = {}
_mutex = threading.Lock()

if sys.platform == "win32":
    import msvcrt

    # others may not read what is locked, so that it is a byte far behind the text
    _FAR = 2**30

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError from error
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        # on NFS Linux makes a lock of the server of it, which other hosts see
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def owned(target: Path) -> Iterator[None]:
    """Hold the place of a file or folder inside the block, rid of what killed runs left beside it.

    The thread that holds it may hold it again.
    Raises: OutputError naming the process that holds it, or saying why nothing can be written there.
    """
    target = absolute(target)
    with _mutex:
        count, descriptor, thread = _held.get(target, (0, -1, threading.get_ident()))
        if thread != threading.get_ident():
            raise OutputError(f"{target} is being written by another thread of this process; give another place")
        made = [] if count else _make(target.parent)
        if not count:
            try:
                descriptor = _acquire(target)
            except OutputError:
                _unmake(made)
                raise
        _held[target] = (count + 1, descriptor, thread)
    try:
        if not count:
            sweep(target)
        yield
    finally:
        with _mutex:
            if count:
                _held[target] = (count, descriptor, thread)
            else:
                del _held[target]
                _release(target, descriptor)
                _unmake(made)


def aside_of(target: Path) -> Path:
    """Make a folder beside `target`, of a name that no other target's could have, and that is swept."""
    return Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent))


def place_of(made: Path) -> Path:
    """Return where something goes that is made in a folder of `aside_of`; any other path is its place already."""
    aside = made.parent
    is_aside = re.fullmatch(rf"\.{re.escape(made.name)}\.[a-z0-9_]{{8}}\.new", aside.name)
    return aside.parent / made.name if is_aside else made


def discard(path: Path) -> None:
    """Remove a file or a folder that stands at an owned place: it is there whole, or not at all under its name."""
    if os.path.lexists(path):
        aside = aside_of(path)
        path.rename(aside / path.name)
        clear(aside)


def clear(path: Path) -> None:
    """Remove a folder with all in it, or a file or a link, of which what it points to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def sweep(target: Path) -> None:
    """Remove what killed runs left beside an owned place, and put back what one of them had moved out of its way."""
    with suppress(OSError):
        old = old_of(target)
        if os.path.lexists(old) and not os.path.lexists(target):
            old.rename(target)
        clear(old)
        _sweep(target.parent, re.escape(target.name))


def sweep_within(folder: Path) -> None:
    """Remove what killed runs left in a folder of which all belongs to an owned place."""
    with suppress(OSError):
        _sweep(folder, ".+")
        for path in folder.glob(".*.lock"):
            clear(path)


def old_of(target: Path) -> Path:
    """Return where the old one stands for a moment, on systems that cannot exchange two paths."""
    return target.with_name(f".{target.name}.old")


def absolute(target: Path) -> Path:
    """Return the path from the root; a link stays the link, which is what would be replaced."""
    return Path(os.path.abspath(target))  # noqa: PTH100


def _sweep(folder: Path, name: str) -> None:
    # eight characters of tempfile's
    left = re.compile(rf"\.{name}\.[a-z0-9_]{{8}}\.new")
    for path in folder.iterdir():
        if left.fullmatch(path.name):
            clear(path)


def _acquire(target: Path) -> int:
    """Return the descriptor of a lock file that is locked; -1 on a disk that knows no locks."""
    path = _lock_file(target)
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except (OSError, ValueError) as error:
            raise OutputError(f"cannot write to {target.parent}: {reason_of(error)}") from error
        try:
            _lock(descriptor)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        except BlockingIOError as error:
            who = _holder(descriptor)
            os.close(descriptor)
            raise OutputError(f"{target} is being written by {who}; wait for its end, or give another place") from error
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(descriptor)
            clear(path)
            logger.warning(
                "%s is on a disk without locks (%s): see to it yourself that one run at a time writes there",
                target, reason_of(error),
            )  # fmt: skip
            return -1
        # its last holder has removed the file meanwhile
        os.close(descriptor)
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
    return descriptor


def _release(target: Path, descriptor: int) -> None:
    if descriptor < 0:
        return
    # while it is still locked: whoever opened it before finds that it is not the file of this name any more
    with suppress(OSError):
        _lock_file(target).unlink(missing_ok=True)
    os.close(descriptor)
    if os.name == "nt":
        # where an open file cannot be removed
        with suppress(OSError):
            _lock_file(target).unlink(missing_ok=True)


def _lock_file(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


def _holder(descriptor: int) -> str:
    deadline = time.monotonic() + SECONDS_TO_SAY_WHO
    while not (said := os.read(descriptor, 1000).decode("utf-8", "replace")) and time.monotonic() < deadline:
        time.sleep(0.02)
    return said or "another process"


def _make(folder: Path) -> list[Path]:
    """Make a folder with those above it, and return the ones that are new, the innermost first."""
    try:
        new = [one for one in (folder, *folder.parents) if not one.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write to {folder}: {reason_of(error)}") from error
    return new


def _unmake(folders: list[Path]) -> None:
    """Remove folders again that nothing came into."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def reason_of(error: Exception) -> str:
    """Return what the system says of an error, in a few words."""
    return getattr(error, "strerror", None) or str(error)


def _forget() -> None:
    """Leave what was held to the process that this one was forked from."""
    for _, descriptor, _ in _held.values():
        if descriptor >= 0:
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
