"""transformers' private marks on a model: what each says, who reads it, and when it goes.

None of them is promised by transformers. This is the one file that names them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lorakit.layers.quantized_linear import QuantizedLinear

# that transformers itself holds the weights quantized: asked by Trainer, `model.to`, accelerate and PEFT
QUANTIZED = ("is_quantized", "hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit")
# the same in the config of every model within the model: some attentions then take the config's dtype and ask no Linear
CONFIG_QUANTIZED = "_is_quantized"
# how tensors of the files became parameters, which `save_pretrained` turns back; it cannot for packed tensors, and
# without this record goes by the model's class
CONVERSIONS = "_weight_conversions"
SAVE = "save_pretrained"
# on each parameter that came from a file, or was tied to one that did
LOADED = "_is_hf_initialized"
# on each block that can be computed again in the backward pass, and how
RECOMPUTES, RECOMPUTING = "gradient_checkpointing", "_gradient_checkpointing_func"
# the function that computes a model's loss, and where one that was set lies
LOSS, LOSS_SET = "loss_function", "_loss_function"
# patterns of what files may lack, since it is computed
COMPUTED = "_keys_to_ignore_on_load_missing"


def is_pretrained(model: nn.Module) -> bool:
    """Return whether a model saves itself as transformers' models do."""
    return hasattr(model, SAVE)


def fresh(model: nn.Module) -> list[str]:
    """Return the parameters that `from_pretrained` drew at random since the files lack them.

    There are none in a model that was made another way, and once it is adapted nothing shows them.
    """
    # what was quantized on the way came from a file
    stored = {one for module in model.modules() if isinstance(module, QuantizedLinear) for one in module.parameters()}
    named = {name: value for name, value in model.named_parameters() if value not in stored}
    if not is_pretrained(model) or not any(getattr(value, LOADED, False) for value in named.values()):
        return []
    # a head that was resized is a new parameter with the old one's values
    resized = getattr(model.get_output_embeddings(), "weight", None)  # type: ignore[operator]
    computed = getattr(model, COMPUTED, None) or ()
    unread = (name for name, value in named.items() if value is not resized and not getattr(value, LOADED, False))
    return [name for name in unread if not any(re.search(one, name) for one in computed)]


def stored_quantized(model: nn.Module) -> Any:
    """Return what the config says of the quantized files that a model was read from; None if they were plain."""
    return getattr(getattr(model, "config", None), "quantization_config", None)


def set_plain(model: nn.Module) -> None:
    """Say that transformers holds no weight of a model, for its layers are lorakit's; its config stays as it is.

    The config's own mark is right still: it tells transformers to look at no Linear's weight.
    """
    for name in QUANTIZED:
        vars(model).pop(name, None)


def recompute(block: nn.Module, by: Callable[..., Any]) -> bool:
    """Have a block computed again in the backward pass, and return whether it has a switch for that.

    One that a trainer has switched on stays as it is.
    """
    if not hasattr(block, RECOMPUTES):
        return False
    if not getattr(block, RECOMPUTES):
        setattr(block, RECOMPUTES, True)
        setattr(block, RECOMPUTING, by)
    return True


def compute_once(block: nn.Module, by: Callable[..., Any]) -> None:
    """Undo `recompute` where it was for the same."""
    if vars(block).get(RECOMPUTING) is by:
        del block.gradient_checkpointing, block._gradient_checkpointing_func


def is_recomputed(block: nn.Module) -> bool:
    """Return whether a block is switched to be computed again in the backward pass."""
    return bool(getattr(block, RECOMPUTES, False))


@contextmanager
def computed_once(block: nn.Module) -> Iterator[None]:
    """Have a block that is switched to be computed again computed once inside the `with` block."""
    setattr(block, RECOMPUTES, False)
    try:
        yield
    finally:
        setattr(block, RECOMPUTES, True)


def switch_off(block: nn.Module) -> None:
    """Have a block computed once from now on, whoever switched it."""
    setattr(block, RECOMPUTES, False)


def loss_of(model: nn.Module) -> Callable[..., Any] | None:
    """Return the function that computes a model's loss from logits and labels, if it has one."""
    return getattr(model, LOSS, None) if isinstance(getattr(type(model), LOSS, None), property) else None


@contextmanager
def loss_by(model: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Have another function compute a model's loss inside the `with` block."""
    was = vars(model).get(LOSS_SET)
    setattr(model, LOSS_SET, function)
    try:
        yield
    finally:
        if was is None:
            delattr(model, LOSS_SET)
        else:
            setattr(model, LOSS_SET, was)


def clear(model: nn.Module) -> None:
    """Remove all that says that weights are or were quantized, from the model and from every config within it."""
    set_plain(model)
    for module in model.modules():
        if (config := getattr(module, "config", None)) is not None and hasattr(config, "__dict__"):
            vars(config).pop(CONFIG_QUANTIZED, None)
    if stored_quantized(model) is not None:
        del model.config.quantization_config  # type: ignore[union-attr]


def forget_reading(model: nn.Module) -> None:
    """Have a model saved by its class alone, and not as the inverse of how it was read."""
    vars(model).pop(CONVERSIONS, None)


def set_saving(model: nn.Module, save: Callable[..., None]) -> None:
    """Let `save` stand for the model's own `save_pretrained`."""
    vars(model)[SAVE] = save


def clear_saving(model: nn.Module) -> None:
    """Give a model its own `save_pretrained` back."""
    vars(model).pop(SAVE, None)
