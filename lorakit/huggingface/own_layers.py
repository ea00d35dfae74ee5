"""Merged layers as the model's own class has them: `save_pretrained` writes weights as they lie, for that class."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lorakit.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from lorakit.hooks.manager import Plugins


@hookimpl
def lorakit_model_merged(model: nn.Module, plugins: Plugins) -> None:
    """Give Linears that stand for another class back to it, such as a Conv1D, whose weight lies transposed."""
    modeling = sys.modules.get("transformers.modeling_utils")
    if modeling is None or not isinstance(model, modeling.PreTrainedModel):
        return
    from torch import nn

    from lorakit.application.places import replace_modules
    from lorakit.application.storing import with_weight

    own = dict(_structure(model).named_modules())
    replacements: dict[nn.Module, nn.Module] = {}
    for path, module in model.named_modules():
        meant = own.get(path)
        if type(module) is not nn.Linear or meant is None or isinstance(meant, nn.Linear):
            continue
        if (shape := plugins.describe_module(meant)) is None:
            continue
        layer = with_weight(meant, module.weight.detach(), shape).train(module.training)
        layer.bias = module.bias
        replacements[module] = layer
    replace_modules(model, replacements)


def _structure(model: nn.Module) -> nn.Module:
    """Return a model of the same class on meta tensors."""
    import torch
    from transformers.initialization import no_init_weights

    with torch.device("meta"), no_init_weights():
        made: nn.Module = type(model)(model.config)
    return made
