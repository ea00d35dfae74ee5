"""What an adapted model remembers: the plan that made it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lorakit.errors import ModelError
from lorakit.planning.plan import Plan

ATTRIBUTE = "lorakit_state"


@dataclass(frozen=True, slots=True)
class Adapted:
    """The plan of an adapted model and the seed that its adapters were drawn with."""

    plan: Plan
    seed: int


def attach(model: nn.Module, plan: Plan, seed: int) -> None:
    """Make a model remember the plan that was applied to it."""
    setattr(model, ATTRIBUTE, Adapted(plan, seed))


def detach(model: nn.Module) -> None:
    """Make a model forget its plan."""
    delattr(model, ATTRIBUTE)


def adapted_state(model: nn.Module) -> Adapted | None:
    """Return what an adapted model remembers, or None for any other model."""
    return getattr(model, ATTRIBUTE, None)


def plan_of(model: nn.Module) -> Plan:
    """Return the plan of an adapted model. Raises: ModelError for a model that is not adapted."""
    state = adapted_state(unwrapped(model))
    if state is None:
        raise ModelError(f"this {type(model).__name__} has no adapters: lorakit.apply or lorakit.load puts them on")
    return state.plan


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside torch.compile's and DistributedDataParallel's wrappers."""
    while adapted_state(model) is None:
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner
    return model
