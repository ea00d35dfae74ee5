"""The loss of a model whose blocks are compiled, compiled too: no copy of its logits in float32 is ever made."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lorakit.compiling import blocks
from lorakit.huggingface import marks


@contextmanager
def loss_as_blocks(model: nn.Module) -> Iterator[None]:
    """Have a model compute its loss by compiled code inside the block, if its blocks are compiled."""
    own = marks.loss_of(model)
    if own is None or not any(isinstance(one._compiled_call_impl, blocks.Compiled) for one in model.modules()):
        yield
        return
    with marks.loss_by(model, _compiled(own)):
        yield


@functools.cache
def _compiled(loss: Callable[..., Any]) -> Callable[..., Any]:
    # nothing of a loss is a product or attention: its logits are what is kept
    compiled: Callable[..., Any] = torch.compile(loss, backend=blocks.backend(1.0))
    return compiled
