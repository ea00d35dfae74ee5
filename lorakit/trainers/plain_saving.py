"""Models of plain PyTorch in transformers' Trainer, which saves all of them but for this: the adapters alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from lorakit.application.sharding import is_sharded
from lorakit.application.state import adapted_state
from lorakit.artifacts.checkpoint import MODEL_WEIGHTS
from lorakit.artifacts.folders import open_up
from lorakit.huggingface import marks, saving
from lorakit.trainers.checkpoints import is_checkpoint
from lorakit.trainers.references import being_made


class AdaptersAlone(TrainerCallback):
    """Has a trainer of a model that cannot save itself write the adapters once it has some."""

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        made = being_made()
        if made is not None and not marks.is_pretrained(model):
            trainer: Trainer = made["self"]
            trainer._save = functools.partial(_save, trainer, trainer._save)  # type: ignore[method-assign]


def _save(trainer: Trainer, own: Callable[..., None], output_dir: str | None = None, state_dict: Any = None) -> None:
    """Save as the trainer does, with the adapters in place of the whole model."""
    model: Any = trainer.model
    # the processes of a sharded model have gathered it for this
    if adapted_state(model) is None or is_sharded(model) or not trainer.args.should_save:
        own(output_dir, state_dict)
        return
    folder = Path(output_dir or str(trainer.args.output_dir))
    own(str(folder), saving.write_used(model, folder))
    if is_checkpoint(folder):
        open_up(folder / MODEL_WEIGHTS)
    else:
        (folder / MODEL_WEIGHTS).unlink()
