"""Where a run's figures go while it goes on: trackers that transformers' Trainer knows, TensorBoard, and a CSV file."""

from __future__ import annotations

import csv
import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lorakit.errors import DataError
from lorakit.trainers.settings import Record

CSV, TENSORBOARD, WANDB = "csv", "tensorboard", "wandb"
HISTORY_CSV = "history.csv"
# every report, and the package that it needs
REPORTS: Mapping[str, str | None] = {CSV: None, TENSORBOARD: "tensorboard", "trackio": "trackio", WANDB: "wandb"}
# those that need no Trainer
PLAIN = (CSV, TENSORBOARD)
COLUMNS = (
    "step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm", "num_input_tokens_seen",
    "train_tokens_per_second", "train_runtime", "rung", "rung_bytes", "rung_milliseconds", "paged_in_bytes",
    "paged_out_bytes", "paged_stalled_milliseconds",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reports:
    """Which reports a run writes; `folder` takes those that are files, `run` is its name for the others."""

    names: tuple[str, ...] = ()
    folder: Path = Path()
    run: str = ""


NO_REPORTS = Reports()


class Log(Protocol):
    """What takes records one after the other."""

    def begin(self, earlier: Iterable[Record]) -> None:
        """Begin, or go on behind the records of the part of the run that came before."""

    def add(self, record: Record) -> None:
        """Take one record more."""

    def close(self) -> None:
        """End."""


def chosen_reports(text: str) -> tuple[str, ...]:
    """Return the reports that `tensorboard,csv` names. Raises: DataError for one that is unknown."""
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if unknown := [name for name in names if name not in REPORTS]:
        raise DataError(f"--report {unknown[0]}: there are {', '.join(REPORTS)}")
    return names


def check_reports(names: Sequence[str], *, is_plain: bool) -> None:
    """Raise DataError where a report lacks its package or account, or is none of a PyTorch model's."""
    for name in names:
        package = REPORTS[name]
        if is_plain and name not in PLAIN:
            raise DataError(f"--report {name} is for Hugging Face models; a PyTorch model takes {', '.join(PLAIN)}")
        if package is not None:
            try:
                module = importlib.import_module(package)
            except ImportError as error:
                raise DataError(f"--report {name} needs {package}: pip install {package} ({error})") from error
            if name == WANDB:
                _log_in(module)


def _log_in(wandb: Any) -> None:
    """Have the account asked for now: Trainer would fail for want of it once the model is read."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return
    try:
        wandb.login()
    # its errors are classes of its own
    except Exception as error:
        raise DataError(f"--report {WANDB}: {error} WANDB_MODE=offline writes to this disk alone.") from error


def logs_of(reports: Reports) -> list[Log]:
    """Return what takes records itself; trackers of Trainer's own are its business."""
    made: list[Log] = []
    if CSV in reports.names:
        made.append(CsvLog(reports.folder / HISTORY_CSV))
    if TENSORBOARD in reports.names:
        made.append(TensorBoardLog(reports.folder))
    return made


class CsvLog:
    """A CSV file with a line for each record, there to be read while the run goes on."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, earlier: Iterable[Record]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow(COLUMNS)
        for record in earlier:
            self.add(record)

    def add(self, record: Record) -> None:
        if "loss" in record or "eval_loss" in record:
            with self._path.open("a", encoding="utf-8", newline="") as file:
                csv.writer(file).writerow([record.get(name, "") for name in COLUMNS])

    def close(self) -> None:
        """Nothing is kept open."""


class TensorBoardLog:
    """TensorBoard's event files; each start writes what came before anew, in the place of what earlier ones wrote."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def begin(self, earlier: Iterable[Record]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(self._folder), purge_step=0)
        for record in earlier:
            self.add(record)

    def add(self, record: Record) -> None:
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                kind = "eval" if name.startswith("eval_") else "train"
                self._writer.add_scalar(f"{kind}/{name.removeprefix('eval_')}", value, record["step"])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
