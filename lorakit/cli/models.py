"""Models for commands: loaded with what the command line allows, behind a spinner."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lorakit.cli.terminal import working

if TYPE_CHECKING:
    from torch import nn


def load_model(
    text: str, *, with_weights: bool, trust_remote_code: bool = False, allow_pickle: bool = False
) -> nn.Module:
    """Return the model that a reference names. Raises: ModelError."""
    from lorakit.errors import ModelError
    from lorakit.hooks.manager import default_plugins
    from lorakit.hooks.protocols import ModelReference

    reference = ModelReference(text, None, with_weights, trust_remote_code, allow_pickle)
    with working(f"reading {text}"):
        model: nn.Module | None = default_plugins().call("lorakit_load_model", reference=reference)
    if model is None:
        raise ModelError(f"nothing here can load the model {text}")
    return model


def device_words() -> str:
    """Say where the work runs."""
    import torch

    if torch.cuda.is_available():
        return f"running on {torch.cuda.get_device_name()}"
    return "no accelerator found: running on the CPU"


def print_progress_allowed() -> bool:
    """Whether a person watches: progress bars go to terminals only."""
    return sys.stderr.isatty()
