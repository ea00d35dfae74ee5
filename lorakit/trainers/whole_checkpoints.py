"""Checkpoints that lack what another process had yet to write: `resume_from_checkpoint=True` does not go on from them.

Trainer takes the one of the highest number, and where a process finds no random generators of its own it goes on with
others, to another end than the run that wrote it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from lorakit.application.state import adapted_in
from lorakit.errors import AdapterError
from lorakit.trainers.checkpoints import advice, lacking
from lorakit.trainers.references import being_made

logger = logging.getLogger("lorakit")


class WholeAlone(TrainerCallback):
    """Has a trainer of an adapted model look at a checkpoint before it goes on from it."""

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        made = being_made()
        if made is not None and adapted_in(model):
            trainer: Trainer = made["self"]
            trainer.train = functools.partial(_train, trainer, trainer.train)  # type: ignore[method-assign]


def _train(
    trainer: Trainer,
    own: Callable[..., Any],
    resume_from_checkpoint: str | bool | None = None,
    *args: Any,
    **given: Any,
) -> Any:
    """Train as the trainer does. Raises: AdapterError if the checkpoint that it would find is not whole."""
    work = Path(str(trainer.args.output_dir))
    found = get_last_checkpoint(str(work)) if resume_from_checkpoint is True and work.is_dir() else None
    if found and (missing := lacking(Path(found))):
        raise AdapterError(
            f"{found} is not whole: its run ended before {missing[0]}, another process's random generators, was "
            f"written; {advice(Path(found))}"
        )
    if isinstance(resume_from_checkpoint, str) and (missing := lacking(Path(resume_from_checkpoint))):
        logger.warning(
            "%s lacks %s, another process's random generators: this run draws others, and ends elsewhere than one "
            "that was not interrupted", resume_from_checkpoint, missing[0],
        )  # fmt: skip
    return own(resume_from_checkpoint, *args, **given)
