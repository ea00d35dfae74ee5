"""Folders and files written aside, flushed, and moved into place whole: after a crash there is the old or the new."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorakit.artifacts.owning import absolute, aside_of, clear, old_of, owned, reason_of
from lorakit.errors import LorakitError, OutputError, TrainingError, WriteError

AT_FDCWD = -100
RENAME_EXCHANGE = 2
UNTOUCHED = "what was there before is untouched"


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a fresh folder aside, of target's name, and put it in target's place, whole, when the block ends well.

    Raises: OutputError if it cannot be made or another process writes there, WriteError if the disk is full or fails.
    """
    with _aside(target) as made:
        made.mkdir()
        yield made


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yield a path aside, of target's name, and put the file that the block writes in its place when it ends well.

    Raises: OutputError if it cannot be made or another process writes there, WriteError if the disk is full or fails.
    """
    with _aside(target) as made:
        yield made


def write_text(target: Path, text: str) -> None:
    """Write a file aside and rename it into place. Raises: OutputError, WriteError."""
    with new_file(target) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def claimed(target: Path, force: bool, *reads: str | None) -> Iterator[None]:
    """Hold an output place for the length of a run, which reads these files, folders or references.

    Raises: OutputError, as `check_output` and `owned` do.
    """
    check_output(target, force, *reads)
    with owned(target):
        # a run that ended, or was killed, while this one came
        check_output(target, force)
        yield


def check_output(target: Path, force: bool, *reads: str | None) -> None:
    """Raise OutputError if a folder exists and may not be replaced, or cannot be made where it should be.

    What a run reads may never be replaced by it.
    """
    try:
        if os.path.lexists(target) and not force:
            raise OutputError(f"{target} exists; give another place, or --force to replace it")
        # a link itself is what would be replaced, and not what it points to
        whole = Path(os.path.realpath(target))
        if not target.is_symlink() and (Path.cwd().is_relative_to(whole) or Path.home().is_relative_to(whole)):
            raise OutputError(f"{target} holds the folder you work in; give a place of its own")
        for one in filter(None, reads if os.path.lexists(target) and not target.is_symlink() else ()):
            # a reference may be file.py:factory
            path = next((name for name in (one, one.rpartition(":")[0]) if name and os.path.lexists(name)), None)
            if path is not None and Path(os.path.realpath(path)).is_relative_to(whole):
                raise OutputError(f"{target} holds {path}, which is read for it; give another place")
        place = _standing_place(target)
        writable = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write to {target}: {reason_of(error)}") from error
    if not writable:
        raise OutputError(f"cannot write to {target}: {place} is no folder that you may write to")


def require_space(target: Path, needed: int) -> None:
    """Raise OutputError if the disk that will hold `target` has fewer bytes free than needed."""
    free = shutil.disk_usage(_standing_place(target)).free
    if free < needed:
        raise OutputError(f"{target} needs {needed:,} bytes; the disk there has {free:,} free")


def flush(made: Path) -> None:
    """Flush a file, or every file of a folder and the folder itself, to the disk."""
    for path in [*made.rglob("*"), made]:
        flush_one(path)


def flush_one(path: Path) -> None:
    """Flush a file's bytes, or a folder's list of names, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """Yield a path of target's name in a folder of its own, and move what the block leaves there into its place."""
    target = absolute(target)
    with owned(target):
        try:
            scratch = aside_of(target)
        except (OSError, ValueError) as error:
            raise OutputError(f"cannot write to {target.parent}: {reason_of(error)}") from error
        made = scratch / target.name
        try:
            yield made
            if made.is_dir():
                # a file keeps what it was given
                open_up(made)
            _flush_made(made, target)
            _put_in_place(made, target)
            _flush_place(target)
        except Exception as error:
            if (reason := disk_reason(error)) is None:
                raise
            # what was copied from elsewhere may be what failed
            of = getattr(error, "filename", None)
            where = (
                f"{os.fsdecode(of)}: " if isinstance(of, str | bytes) and scratch.name not in os.fsdecode(of) else ""
            )
            raise WriteError(f"writing {target} failed: {where}{reason}; {UNTOUCHED}") from error
        finally:
            clear(scratch)


def disk_reason(error: Exception) -> str | None:
    """Return what the system says where an error is one of writing, whatever library raised it; None if it is not."""
    if isinstance(error, OSError):
        return reason_of(error)
    if isinstance(error, LorakitError | TrainingError | WriteError):
        return None
    text = str(error)
    # safetensors and tokenizers, which write on their own
    if number := re.search(r"\(os error (\d+)\)", text):
        return os.strerror(int(number[1]))
    # torch's archives, which keep the system's reason to themselves
    if any(sign in text for sign in ("PytorchStreamWriter", "inline_container", "iostream error")):
        return f"torch could not write all of it, as on a full disk ({text.splitlines()[0]})"
    return None


def _flush_made(made: Path, target: Path) -> None:
    try:
        flush(made)
    except OSError as error:
        # the system forgets what it could not write, and would say of a second flush that all is well
        raise WriteError(
            f"writing {target} failed: the disk did not take what was written ({reason_of(error)}), and may be "
            f"failing; {UNTOUCHED}"
        ) from error


def _flush_place(target: Path) -> None:
    try:
        flush_one(target.parent)
    except OSError as error:
        raise WriteError(
            f"{target} is the new one, whole, but the disk did not confirm its name ({reason_of(error)}): after a "
            "power cut it may be the old one again; write it anew on a disk that is well"
        ) from error


def _put_in_place(made: Path, target: Path) -> None:
    if not os.path.lexists(target):
        made.rename(target)
    elif not made.is_dir():
        made.replace(target)
    elif not _exchange(made, target):
        _replace(made, target)


def _replace(made: Path, target: Path) -> None:
    """Replace without an atomic exchange: between two renames the old one stands under the name of `old_of`.

    A run that is killed there leaves it so, and the next run that owns the place puts it back.
    """
    old = old_of(target)
    clear(old)
    target.rename(old)
    try:
        made.rename(target)
    except OSError:
        old.rename(target)
        raise
    clear(old)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step; False where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code))


def open_up(made: Path) -> None:
    """Give a file, or a folder and its files, the usual permissions; safetensors makes files for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in [made, *made.rglob("*")]:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _standing_place(target: Path) -> Path:
    """Return the folder above `target` that exists already."""
    place = absolute(target).parent
    while not place.exists():
        place = place.parent
    return place
