"""A run's checkpoints: each whole or absent, the last two kept, and the last whole one found again."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lorakit.artifacts.folders import disk_reason, new_folder
from lorakit.artifacts.owning import discard
from lorakit.errors import OutputError, WriteError
from lorakit.processes import ALONE, Processes

# what transformers' Trainer writes last of a checkpoint, in its first process
STATE = "trainer_state.json"
# what each of several processes writes of it, no sooner and no later than it comes to it
GENERATORS = "rng_state_{}.pth"
# which of these have to be there
_AWAITED = ".awaited.json"
KEPT = 2
_NAME = re.compile(r"checkpoint-(\d+)")
# what stands in STATE until all else of a checkpoint is written
_UNFINISHED = " is not whole: "


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Where a run's checkpoints go; `goes_on` says if it goes on where one cannot be written, `say` tells the user.

    Several processes write one together, and find the same again.
    """

    work: Path
    goes_on: bool
    say: Callable[[str], None]
    processes: Processes = ALONE

    def write(self, step: int, fill: Callable[[Path], object], *, needed: bool = False) -> None:
        """Write what `fill` puts into a folder as the checkpoint of a step, and let go of all but the last two.

        A run that ends here needs it. Raises: WriteError where the run does not go on without it.
        """
        try:
            with _filled_together(self.work / f"checkpoint-{step}", self.processes) as folder:
                fill(folder)
        except (OutputError, WriteError) as error:
            standing = last_whole(self.work)
            kept = f"{standing} is the last whole checkpoint" if standing else "no whole checkpoint is there"
            if needed or not self.goes_on:
                raise WriteError(f"{error}; {kept}") from error
            self.say(f"warning: {error}; {kept}, and training goes on")
            return
        if self.processes.is_first:
            self._let_go(step)

    def last(self) -> Path | None:
        """Return the last whole checkpoint, if there is any, and say which later ones are not whole."""
        return self.processes.told(self._last() if self.processes.is_first else None)

    def _last(self) -> Path | None:
        for folder, why in _newest_first(self.work):
            if not why:
                # a run that was killed may have been about to
                self._let_go(step_of(folder))
                return folder
            self.say(f"warning: {folder} is not whole ({why}), and is passed over")
        return None

    def _let_go(self, last: int) -> None:
        """Remove all checkpoints but the last two up to a step."""
        for _, old in sorted((step, one) for step, one in checkpoint_steps(self.work).items() if step <= last)[:-KEPT]:
            discard(old)


@contextmanager
def _filled_together(target: Path, processes: Processes) -> Iterator[Path]:
    """Yield to every process the folder aside that the first makes, and puts in target's place once all filled it.

    Raises: OutputError, WriteError, in every process alike; in the first alone, where only moving it fails.
    """
    with ExitStack() as stack:
        begun: Path | str = ""
        if processes.is_first:
            try:
                begun = stack.enter_context(new_folder(target))
            except (OutputError, WriteError) as error:
                processes.told(str(error))
                raise
        folder = processes.told(begun)
        if isinstance(folder, str):
            raise WriteError(folder)
        try:
            yield folder
        except Exception as error:
            why = str(error) if isinstance(error, OutputError | WriteError) else disk_reason(error)
            if why is None:
                raise
            processes.gathered(why)
            if processes.is_first:
                # told with its place as it leaves the folder
                raise
            raise WriteError(f"writing {target} failed: {why}") from error
        if why := next(filter(None, processes.gathered("")), ""):
            raise WriteError(f"writing {target} failed: {why}")


def last_whole(work: Path, before: int | None = None) -> Path | None:
    """Return the last whole checkpoint in a folder, lorakit's or that of transformers' Trainer; None without any.

    `before` leaves out those of this step and later ones.
    """
    found = (folder for folder, why in _newest_first(work) if not why)
    return next((folder for folder in found if before is None or step_of(folder) < before), None)


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint, by its name."""
    return _NAME.fullmatch(folder.name) is not None


def begin(checkpoint: Path) -> None:
    """Mark a checkpoint that somebody else writes as not whole, until they write STATE, the last of it.

    transformers' Trainer resumes from the highest number, whole or not; it refuses a state with a field that it does
    not know by that field's name, which so is what the user is told.
    """
    text = f"{checkpoint}{_UNFINISHED}its run ended while it was written; {advice(checkpoint)}"
    aside = checkpoint / f".{STATE}.new"
    aside.write_text(json.dumps({text: True}), encoding="utf-8")
    aside.replace(checkpoint / STATE)
    await_all(checkpoint, [GENERATORS.format(rank) for rank in _ranks_here()])


def await_all(checkpoint: Path, files: Sequence[str]) -> None:
    """Have a checkpoint be whole once these files, which several processes write, are there."""
    if files:
        (checkpoint / _AWAITED).write_text(json.dumps(files), encoding="utf-8")
    else:
        # several may have begun it, and one goes on
        (checkpoint / _AWAITED).unlink(missing_ok=True)


def advice(checkpoint: Path) -> str:
    """Say what to go on from instead of a checkpoint that is not whole."""
    standing = last_whole(checkpoint.parent, step_of(checkpoint))
    return (
        f"give resume_from_checkpoint={str(standing)!r}, the last whole one" if standing
        else "no whole one is there, so start without resume_from_checkpoint"
    )  # fmt: skip


def _ranks_here() -> range:
    """Return the ranks that a launcher started on this machine, if several: other machines may have other disks."""
    count, rank, local = (int(os.environ.get(name, 0)) for name in ("LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK"))
    return range(rank - local, rank - local + count) if count > 1 else range(0)


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was written, by its name."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoint_steps(work: Path) -> dict[int, Path]:
    """Return the checkpoints in a folder by their steps, whole or not."""
    if not work.is_dir():
        return {}
    named = ((_NAME.fullmatch(path.name), path) for path in work.iterdir() if path.is_dir())
    return {int(name[1]): path for name, path in named if name}


def why_not_whole(folder: Path) -> str:
    """Return what is missing of a checkpoint or cut short in it; nothing if it is whole."""
    if not (folder / STATE).is_file():
        return f"no {STATE}"
    if not any(folder.glob("*.safetensors")):
        return "no weights"
    for file in sorted(folder.iterdir()):
        try:
            _CHECKS.get(file.suffix, lambda _: None)(file)
        except Exception:
            return f"{file.name} is cut short"
    if missing := lacking(folder):
        return f"no {missing[0]}"
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    unfinished = isinstance(state, dict) and any(_UNFINISHED in name for name in state)
    return "its run ended while it was written" if unfinished else ""


def lacking(folder: Path) -> list[str]:
    """Return what other processes than the first did not write; a checkpoint of the model alone awaits nothing."""
    if not (folder / _AWAITED).is_file():
        return []
    named = json.loads((folder / _AWAITED).read_text(encoding="utf-8"))
    awaited = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    missing = [name for name in awaited if not (folder / name).is_file()]
    return missing if len(missing) < len(awaited) else []


def _newest_first(work: Path) -> list[tuple[Path, str]]:
    return [(folder, why_not_whole(folder)) for _, folder in sorted(checkpoint_steps(work).items(), reverse=True)]


def _check_tensors(file: Path) -> None:
    from safetensors import safe_open

    # its header says how long the file is
    with safe_open(file, "pt"):
        pass


def _check_archive(file: Path) -> None:
    # torch's archives end with their table of contents
    with zipfile.ZipFile(file):
        pass


def _check_json(file: Path) -> None:
    json.loads(file.read_text(encoding="utf-8"))


_CHECKS: dict[str, Callable[[Path], None]] = {
    ".safetensors": _check_tensors, ".pt": _check_archive, ".pth": _check_archive, ".bin": _check_archive,
    ".json": _check_json,
}  # fmt: skip
