"""A plain model as a folder: what transformers writes for its own models, a state dict for any other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from lorakit.artifacts.checkpoint import MODEL_WEIGHTS

# a model folder is of use only with its tokenizer or processor, which lorakit does not change
COMPANIONS = (
    "tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "added_tokens.json", "chat_template*",
    "*processor_config.json", "spiece.model", "sentencepiece*",
)  # fmt: skip


def write_model(model: nn.Module, folder: Path, base: Path) -> None:
    """Write a model into a folder that exists, with the tokenizer files of the base folder."""
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)  # type: ignore[operator]
        copy_companions(base, folder)
        return
    from safetensors.torch import save_model

    # save_model writes a tensor that two modules share once, and says so in the file's metadata
    save_model(model, str(folder / MODEL_WEIGHTS))


def copy_companions(base: Path, folder: Path) -> None:
    """Copy the tokenizer files of a base folder; a base that is no folder has none here."""
    if base.is_dir():
        for pattern in COMPANIONS:
            for path in base.glob(pattern):
                shutil.copy2(path, folder / path.name)


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers from drawing progress bars of its own."""
    from transformers.utils import logging

    drawing = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawing:
            logging.enable_progress_bar()
