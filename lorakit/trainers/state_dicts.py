"""Every adapted model takes a state that holds its adapters alone; a module gives such a state where it is asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from lorakit.planning.plan import Plan


@hookimpl
def lorakit_model_ready(model: nn.Module, plan: Plan) -> None:
    take_adapters(model)


@hookimpl
def lorakit_model_merged(model: nn.Module) -> None:
    for key, hook in list(model._load_state_dict_pre_hooks.items()):
        if _takes(hook):
            del model._load_state_dict_pre_hooks[key]


def take_adapters(module: nn.Module) -> None:
    """Have a module load the states of its adapters too, strictly, with the rest left as it is."""
    from lorakit.artifacts.state_dict import from_adapters

    if not any(map(_takes, module._load_state_dict_pre_hooks.values())):
        module.register_load_state_dict_pre_hook(from_adapters)


def give_adapters(module: nn.Module) -> None:
    """Have the state of a module hold its adapters alone, and the module take such a state."""
    from lorakit.artifacts.state_dict import to_adapters

    if to_adapters not in module._state_dict_hooks.values():
        module.register_state_dict_post_hook(to_adapters)
    take_adapters(module)


def _takes(hook: Any) -> bool:
    from lorakit.artifacts.state_dict import from_adapters

    # torch wraps a hook
    return getattr(hook, "hook", hook) is from_adapters
