"""What nn.Module does at each call and each look at a parameter, for less time on the host.

Looking at `module.weight` takes as long as adding a bias: Python searches the class and the instance, and raises and
catches an error, before nn.Module is asked.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.module import _has_any_global_hook


def parameter(module: nn.Module, name: str) -> Any:
    """Return what `module.name` is, a parameter of the module that may be None."""
    try:
        return module._parameters[name]
    except KeyError:
        # parametrizations, replicas and what shards a module keep it elsewhere
        return getattr(module, name)


def is_watched(module: nn.Module) -> bool:
    """Return whether calling a module does more than the forward of its class: hooks, or a forward of its own."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or _has_any_global_hook()
    )
