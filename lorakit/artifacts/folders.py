"""Folders written aside, flushed, and moved into place whole: after a crash there is the old one or the new."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lorakit.errors import OutputError, WriteError

AT_FDCWD = -100
RENAME_EXCHANGE = 2


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a fresh folder beside `target` and put it in target's place, whole, when the block ends well.

    Raises: OutputError if the folder cannot be made, WriteError if the disk is full or fails.
    """
    target = Path(os.path.abspath(target))  # noqa: PTH100  (resolve() would follow a link and replace what it points to)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent))
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write to {target.parent}: {_reason(error)}") from error
    try:
        yield aside
        _open_up(aside)
        flush(aside)
        _put_in_place(aside, target)
    except OSError as error:
        raise WriteError(
            f"writing {target} failed: {error.strerror or error}; what was there before is untouched"
        ) from error
    except Exception as error:
        if "No space left" in str(error) or "File too large" in str(error):
            raise WriteError(f"writing {target} failed: {error}; what was there before is untouched") from error
        raise
    finally:
        _clear(aside)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yield a path beside `target`, and put the file that the block writes there in target's place when it ends well.

    Raises: OutputError if the folder cannot be made, WriteError if the disk is full or fails.
    """
    try:
        aside = target.with_name(f".{target.name}.new")
        target.parent.mkdir(parents=True, exist_ok=True)
        # what a run that was killed has left, and at once whether the name is one that the disk takes
        aside.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write to {target}: {_reason(error)}") from error
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(target)
        flush_entry(target.parent)
    except OSError as error:
        raise WriteError(
            f"writing {target} failed: {error.strerror or error}; what was there before is untouched"
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write a file aside and rename it into place. Raises: OutputError, WriteError."""
    with new_file(target) as aside:
        aside.write_text(text, encoding="utf-8")


def check_output(target: Path, force: bool) -> None:
    """Raise OutputError if a folder exists and may not be replaced, or cannot be made where it should be."""
    try:
        if os.path.lexists(target) and not force:
            raise OutputError(f"{target} exists; give another place, or --force to replace it")
        # a link itself is what would be replaced, and not what it points to
        whole = Path(os.path.realpath(target))
        if not target.is_symlink() and (Path.cwd().is_relative_to(whole) or Path.home().is_relative_to(whole)):
            raise OutputError(f"{target} holds the folder you work in; give a place of its own")
        place = _standing_place(target)
        writable = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write to {target}: {_reason(error)}") from error
    if not writable:
        raise OutputError(f"cannot write to {target}: {place} is no folder that you may write to")


def _standing_place(target: Path) -> Path:
    """Return the folder above `target` that exists already."""
    place = Path(os.path.abspath(target)).parent  # noqa: PTH100
    while not place.exists():
        place = place.parent
    return place


def require_space(target: Path, needed: int) -> None:
    """Raise OutputError if the disk that will hold `target` has fewer bytes free than needed."""
    free = shutil.disk_usage(_standing_place(target)).free
    if free < needed:
        raise OutputError(f"{target} needs {needed:,} bytes; the disk there has {free:,} free")


def flush(folder: Path) -> None:
    """Flush every file of a folder, and the folder itself, to the disk."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _put_in_place(aside: Path, target: Path) -> None:
    if not os.path.lexists(target):
        aside.rename(target)
    elif not _exchange(aside, target):
        # no atomic exchange on this system: between the two renames the old folder stands under the name `.old`
        old = target.with_name(f".{target.name}.old")
        _clear(old)
        target.rename(old)
        aside.rename(target)
        _clear(old)
    flush_entry(target.parent)


def _clear(path: Path) -> None:
    """Remove a folder with all in it, or a file or a link, of which what it points to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def flush_entry(folder: Path) -> None:
    """Flush a folder's list of names, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def _open_up(folder: Path) -> None:
    """Give a folder and its files the usual permissions; tempfile and safetensors make them for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in [folder, *folder.rglob("*")]:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
