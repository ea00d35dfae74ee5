"""A vocabulary that grows or shrinks once a model is adapted: transformers resizes plain embeddings alone."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from lorakit.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from lorakit.planning.plan import Plan

RESIZE = "resize_token_embeddings"


@hookimpl
def lorakit_model_ready(model: nn.Module, plan: Plan) -> None:
    if hasattr(model, RESIZE):
        vars(model)[RESIZE] = functools.partial(_resize, model)


@hookimpl
def lorakit_model_merged(model: nn.Module) -> None:
    vars(model).pop(RESIZE, None)


def _resize(model: Any, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> Any:
    """Resize the embeddings, and with them the base's own values of those that train in full.

    Raises: ModelError where an adapter is on one of them, or it is stored quantized; nothing is changed then.
    """
    from lorakit.application.state import state_of
    from lorakit.application.switching import full_values
    from lorakit.errors import ModelError
    from lorakit.layers.quantized_linear import QuantizedLinear

    resize = functools.partial(getattr(type(model), RESIZE), model, new_num_tokens, *args, **kwargs)
    if new_num_tokens is None and not args and not kwargs:
        return resize()
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    for path, module in model.named_modules():
        if module in ends and ("base_layer" in module._modules or isinstance(module, QuantizedLinear)):
            how = "is stored quantized" if isinstance(module, QuantizedLinear) else "has an adapter"
            raise ModelError(f"`{path}` {how}, whose vocabulary is fixed: call `model.{RESIZE}` before `lorakit.apply`")
    made = resize()
    state = state_of(model)
    for adapter in state.named.values():
        live = full_values(model, adapter)
        for held in (state.base, adapter.kept):
            for name in held.keys() & live.keys():
                # new rows begin as those that the model was given
                if held[name].shape != live[name].shape:
                    rows, old = min(len(held[name]), len(live[name])), held[name]
                    held[name] = live[name].detach().to("cpu", copy=True)
                    held[name][:rows] = old[:rows]
    return made
