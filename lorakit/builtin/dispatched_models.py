"""Models that accelerate split over devices: weights that it keeps elsewhere take no adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorakit.errors import ModelError
from lorakit.hooks.specs import hookimpl
from lorakit.planning.place import Place

if TYPE_CHECKING:
    from torch import nn

    from lorakit.planning.plan import Plan


@hookimpl
def lorakit_before_apply(model: nn.Module, plan: Plan) -> None:
    modules = dict(model.named_modules())
    away = []
    for entry in plan.entries:
        path = Place.of(entry).module
        if path in modules and _is_offloaded(modules[path]):
            away.append(entry.path)
    if away:
        raise ModelError(
            f"the weights of {len(away)} modules are offloaded, first `{away[0]}`: they come from the CPU or the disk "
            "for a forward pass and go again, so no adapter holds on them; load the model with a device_map that "
            'names no `cpu` or `disk`, such as device_map={"": 0}, or leave these layers out of the rules'
        )


def _is_offloaded(module: nn.Module) -> bool:
    hook = module.__dict__.get("_hf_hook")
    # several hooks on one module are held in one
    return any(getattr(one, "offload", False) for one in getattr(hook, "hooks", [hook]))
