"""Convolutions and lookups."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorakit.hooks.specs import hookimpl
from lorakit.values import LayerShape

if TYPE_CHECKING:
    from torch import nn


def _looks_up(module: nn.Embedding) -> bool:
    """Whether a token gives its row, perhaps times a number: some classes look up positions, and take only a shape.

    A class with a forward of its own is asked once, with rows of one number each.
    """
    import torch
    from torch import nn

    if type(module).forward is nn.Embedding.forward:
        return True
    if module.num_embeddings < 4:
        return False
    buffers = {name: torch.ones(value.shape, dtype=value.dtype) for name, value in module.named_buffers()}
    rows = torch.arange(module.num_embeddings, dtype=torch.float32)[:, None]
    tokens = torch.tensor([[3, 1, 2]])
    try:
        answer = torch.func.functional_call(module, {**buffers, "weight": rows}, (tokens,))
    except Exception:
        # it takes something else than tokens
        return False
    if not isinstance(answer, torch.Tensor) or answer.shape != (1, 3, 1):
        return False
    return torch.equal(answer[..., 0], answer[0, 1] * tokens)


@hookimpl
def lorakit_describe_module(module: nn.Module) -> LayerShape | None:
    from torch import nn

    if isinstance(module, nn.Embedding) and _looks_up(module):
        return LayerShape("embedding", module.num_embeddings, module.embedding_dim, padding=module.padding_idx)
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
