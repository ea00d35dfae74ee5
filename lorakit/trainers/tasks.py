"""Data made ready for a model, by the trainer that fits it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from lorakit.values import ModelReference

if TYPE_CHECKING:
    from torch import nn

    from lorakit.trainers.huggingface_task import LanguageTask
    from lorakit.trainers.plain_task import PairsTask
    from lorakit.trainers.settings import Settings

Task: TypeAlias = "LanguageTask | PairsTask"


def make_task(
    data: str, structure: nn.Module, model: ModelReference, settings: Settings, loss: str | None = None
) -> Task:
    """Return the data made ready for a model of this structure. Raises: DataError, ModelError."""
    if hasattr(structure, "save_pretrained"):
        from lorakit.trainers.huggingface_task import LanguageTask
        from lorakit.trainers.text_data import check_causal

        check_causal(structure, "training on text")
        return LanguageTask(model.text, data, settings, model.trust_remote_code)
    from lorakit.trainers.plain_task import PairsTask

    return PairsTask(data, loss, settings)
