"""Data made ready for a model, by the trainer that fits it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from lorakit.data.source import Data, Reading, read_data
from lorakit.errors import DataError
from lorakit.reporter import SILENT, Reporter
from lorakit.values import ModelReference

if TYPE_CHECKING:
    from torch import nn

    from lorakit.hooks.manager import Plugins
    from lorakit.trainers.huggingface_task import LanguageTask
    from lorakit.trainers.plain_task import PairsTask
    from lorakit.trainers.settings import Settings

Task: TypeAlias = "LanguageTask | PairsTask"
# what was read of a file, or the name of code that makes pairs
Source: TypeAlias = Data | str


def read_source(data: str, plugins: Plugins, reading: Reading, reporter: Reporter = SILENT) -> Source:
    """Return what a file holds, which needs no model; the name of code, `FILE.py:FACTORY`, is left as it is.

    Raises: DataError, PluginError.
    """
    path = Path(data)
    if ":" in path.name and not path.exists():
        check_file(data)
        return data
    return read_data(path, plugins, reading, reporter)


def check_file(code: str) -> None:
    """Raise DataError where the file of `FILE.py:NAME` is not there; it is not run before torch is."""
    place = code.rpartition(":")[0]
    if place.endswith(".py") and not Path(place).is_file():
        raise DataError(f"no such file: {place}")


def make_task(
    data: Source,
    structure: nn.Module,
    model: ModelReference,
    settings: Settings,
    loss: str | None = None,
    reporter: Reporter = SILENT,
    *,
    held_out: Source | None = None,
) -> Task:
    """Return the data made ready for a model of this structure; `held_out` is what to measure on, if it lies apart.

    Raises: DataError, ModelError.
    """
    if hasattr(structure, "save_pretrained"):
        from lorakit.data.language_model import check_causal
        from lorakit.trainers.huggingface_task import LanguageTask

        check_causal(structure, "training on text")
        if isinstance(data, str) or isinstance(held_out, str):
            code = data if isinstance(data, str) else held_out
            raise DataError(f"a language model trains on a file of text, and {code} names code")
        if loss is not None:
            raise DataError(f"--loss {loss}: a language model has its own loss; --loss is for PyTorch models")
        return LanguageTask(model, structure, data, settings, reporter, held_out=held_out)
    from lorakit.trainers.plain_task import PairsTask

    if isinstance(data, Data) or isinstance(held_out, Data):
        file = data if isinstance(data, Data) else held_out
        assert isinstance(file, Data)
        raise DataError(f"a PyTorch model trains on pairs that code makes, FILE.py:FACTORY, and {file.name} is a file")
    return PairsTask(data, loss, settings, held_out=held_out)
