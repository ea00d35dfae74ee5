"""Plain PyTorch models, named `FILE.py:FACTORY` or `package.module:FACTORY`: a call without arguments makes one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorakit.dtypes import dtype_of
from lorakit.errors import ModelError
from lorakit.hooks.specs import hookimpl
from lorakit.named_objects import named_object
from lorakit.values import ModelReference

if TYPE_CHECKING:
    from torch import nn


@hookimpl
def lorakit_load_model(reference: ModelReference) -> nn.Module | None:
    if not reference.is_factory:
        return None
    import torch

    factory = named_object(reference.text, "model")
    try:
        if reference.with_weights:
            model = factory()
        else:
            with torch.device("meta"):
                model = factory()
    except Exception as error:
        raise ModelError(f"{reference.text} failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"{reference.text} returned a {type(model).__name__}, not a torch.nn.Module")
    return model.to(dtype_of(reference.dtype)) if reference.dtype else model
