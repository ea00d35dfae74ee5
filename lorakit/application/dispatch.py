"""accelerate's hooks, which move a layer's inputs to its device in a model that is split over several."""

from __future__ import annotations

from torch import nn


def move_hook(original: nn.Module, replacement: nn.Module) -> None:
    """Move accelerate's hook, if a layer has one, to the module that takes its place."""
    hook = original.__dict__.get("_hf_hook")
    # a copy of a layer with a hook holds that layer's forward, and would compute with its weight
    for name in ("_hf_hook", "_old_forward", "forward"):
        replacement.__dict__.pop(name, None)
    if hook is None:
        return
    from accelerate.hooks import add_hook_to_module, remove_hook_from_module

    remove_hook_from_module(original)
    add_hook_to_module(replacement, hook)
