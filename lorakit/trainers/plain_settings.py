"""What of the settings a PyTorch model's loop does not have, said before torch is imported."""

from __future__ import annotations

from lorakit.errors import DataError
from lorakit.trainers.schedules import PLAIN
from lorakit.trainers.settings import Settings


def check_settings(settings: Settings) -> None:
    """Raise DataError for what only language models have."""
    if settings.pack:
        raise DataError("--pack joins rows of tokens, and a PyTorch model trains on pairs")
    if settings.schedule and settings.schedule not in PLAIN:
        raise DataError(
            f"--schedule {settings.schedule} is for Hugging Face models; a PyTorch model takes {', '.join(PLAIN)}"
        )
