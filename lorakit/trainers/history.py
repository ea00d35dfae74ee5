"""What the loop for PyTorch models logs, named as transformers' Trainer names it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from lorakit.trainers.reports import Log
from lorakit.trainers.settings import Record


class History:
    """Records, kept in order and handed on to logs."""

    def __init__(self, earlier: Sequence[Record], logs: Sequence[Log], epochs_a_step: float) -> None:
        self.records = list(earlier)
        self._logs = logs
        self._pace = epochs_a_step
        self._begun = time.monotonic()
        for log in logs:
            log.begin(self.records)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def add(self, step: int, **values: float | None) -> None:
        """Log what was measured after a step."""
        known = {name: value for name, value in values.items() if value is not None}
        if known:
            runtime = round(self.seconds, 4)
            record = {**known, "epoch": round(step * self._pace, 4), "train_runtime": runtime, "step": step}
            self.records.append(record)
            for log in self._logs:
                log.add(record)

    def close(self) -> None:
        for log in self._logs:
            log.close()
