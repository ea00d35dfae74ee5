"""Convolutions and lookups."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorakit.hooks.protocols import LayerShape
from lorakit.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import nn


@hookimpl
def lorakit_describe_module(module: nn.Module) -> LayerShape | None:
    from torch import nn

    if isinstance(module, nn.Embedding):
        return LayerShape("embedding", module.num_embeddings, module.embedding_dim)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and not module.transposed:
        grouped = module.groups > 1
        return LayerShape(
            kind=f"conv{len(module.kernel_size)}d",
            in_features=module.in_channels,
            out_features=module.out_channels,
            kernel=tuple(module.kernel_size),
            refusal="it is a grouped convolution, and B·A has not the shape of its weight" if grouped else "",
        )
    return None
