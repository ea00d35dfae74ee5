"""What an adapted model remembers: its adapters by name, each with the plan that made it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.dtypes import dtype_of, name_of
from lorakit.errors import ModelError
from lorakit.hooks.manager import Plugins
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.layers.strength import Strength
from lorakit.planning.hardware import Compute
from lorakit.planning.inventory import Inventory
from lorakit.planning.plan import Plan, PlanEntry

ATTRIBUTE = "lorakit_state"
# the name of an adapter that was given none
DEFAULT = "default"


@dataclass(eq=False, slots=True)
class NamedAdapter:
    """One plan on a model: the adapters that it put there, by the path of their entry.

    `kept` are its own values of what it trains in full, by path, while another's stand in the model. `taken` are lora_A
    and lora_B of a start that was taken from the base weight, by path, on the CPU, and `resting` the layers around
    the adapters that give it back, once it was needed. `is_told` is set once a user was told that PEFT cannot load it.
    """

    name: str
    plan: Plan
    seed: int
    modules: dict[str, nn.Module]
    strength: Strength = 0.0
    kept: dict[str, Tensor] = field(default_factory=dict)
    taken: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    resting: dict[str, nn.Module] = field(default_factory=dict)
    is_told: bool = False

    def check_removal(self) -> None:
        """Raise ModelError if the adapter cannot be taken off: its base is no longer the model's."""
        if self.taken:
            path = next(iter(self.taken))
            raise ModelError(
                f"the start of `{self.name}` was taken from the base weight of `{path}` and of {len(self.taken) - 1} "
                "more: without it the base does not answer as the model did; put it out of use instead, or load the "
                "model once more"
            )

    def answer(self, strength: Strength) -> None:
        """Let its layers answer with this strength, and those that give back what its start took with the rest."""
        for modules, factor in ((self.modules, strength), (self.resting, 1.0 - strength)):
            for module in modules.values():
                module.strength = _beside(module, factor)  # type: ignore[assignment]

    def fall_silent(self) -> None:
        """Let its layers add nothing, while the base layer under them holds all of it."""
        for module in (*self.modules.values(), *self.resting.values()):
            module.strength = 0.0  # type: ignore[assignment]

    def entries(self) -> Iterator[tuple[PlanEntry, nn.Module]]:
        """Yield the entries that have an adapter, each with it."""
        for entry in self.plan.entries:
            if entry.adapter is not None:
                yield entry, self.modules[entry.path]

    @property
    def is_used(self) -> bool:
        return isinstance(self.strength, Tensor) or self.strength != 0.0


def _beside(module: nn.Module, strength: Strength) -> Strength:
    """Return a strength on the device of the layer that answers with it."""
    if not isinstance(strength, Tensor):
        return strength
    return strength.to(next(module.parameters(recurse=False)).device)


@dataclass(eq=False, slots=True)
class Kept:
    """The values of a tensor, by their places in it, that casting it rounds."""

    places: Tensor
    values: Tensor


@dataclass(eq=False, slots=True)
class Cast:
    """What was cast in a model, each with the dtype that it had: parameters, buffers by module and name, layers."""

    compute: Compute
    parameters: list[tuple[nn.Parameter, torch.dtype, Kept | None]] = field(default_factory=list)
    buffers: list[tuple[nn.Module, str, torch.dtype]] = field(default_factory=list)
    layers: list[tuple[QuantizedLinear, torch.dtype]] = field(default_factory=list)

    def target(self, dtype: torch.dtype) -> torch.dtype:
        """Return what a tensor of this dtype is cast to; the same where it stays."""
        return dtype_of(self.compute.dtype_for(name_of(dtype)))


@dataclass(eq=False, slots=True)
class Adapted:
    """The adapters of a model in the order in which they came, what made them, and what the model was without them.

    `base` are the base model's own values of what any adapter trains in full, on the CPU; `standing` names the adapter
    whose values stand in the model instead. `merged` holds the base's own layers and parameters, by path, while the
    adapters are folded into others in their place. `cast` is what the model holds in another dtype than its own, and
    `buffers` copies of what its modules may count in; `told` are those of which it was said that they changed. `waits`
    while this process has no values of the model, or of its adapters, and gets them from the first.
    """

    inventory: Inventory
    plugins: Plugins
    named: dict[str, NamedAdapter] = field(default_factory=dict)
    base: dict[str, Tensor] = field(default_factory=dict)
    standing: dict[str, str] = field(default_factory=dict)
    merged: dict[str, nn.Module | nn.Parameter] = field(default_factory=dict)
    cast: Cast | None = None
    buffers: dict[str, Tensor] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    waits: bool = False

    def copied(self) -> dict[str, Any]:
        """Return what this state holds now, for `restore`."""
        held = {one.name: getattr(self, one.name) for one in fields(self)}
        strengths = {name: (adapter.strength, dict(adapter.kept)) for name, adapter in self.named.items()}
        return {name: dict(value) if isinstance(value, dict) else value for name, value in held.items()} | {
            "adapters": strengths
        }

    def restore(self, copied: dict[str, Any]) -> None:
        """Bring back what `copied` returned."""
        for name, (strength, kept) in copied.pop("adapters").items():
            self.named[name].strength, self.named[name].kept = strength, kept
        for name, value in copied.items():
            setattr(self, name, value)

    def get(self, name: str) -> NamedAdapter:
        """Return the adapter of this name. Raises: ModelError listing those that there are."""
        if name not in self.named:
            raise ModelError(f"no adapter is called `{name}`; there are: {', '.join(self.named)}")
        return self.named[name]

    def check_apart(self) -> None:
        """Raise ModelError while the adapters are merged into the weights."""
        if self.merged:
            raise ModelError("the adapters are merged into the weights: `lorakit.adapters(model).unmerge()` first")

    @property
    def used(self) -> list[NamedAdapter]:
        return [adapter for adapter in self.named.values() if adapter.is_used]


def attach(model: nn.Module, state: Adapted) -> None:
    """Make a model remember its adapters."""
    setattr(model, ATTRIBUTE, state)


def detach(model: nn.Module) -> None:
    """Make a model forget its adapters."""
    delattr(model, ATTRIBUTE)


def adapted_state(model: nn.Module) -> Adapted | None:
    """Return what an adapted model remembers, or None for any other model."""
    # wrappers answer for what they wrap
    return vars(model).get(ATTRIBUTE)


def state_of(model: nn.Module) -> Adapted:
    """Return what an adapted model remembers. Raises: ModelError for a model that is not adapted."""
    state = adapted_state(unwrapped(model))
    if state is None:
        raise ModelError(f"this {type(model).__name__} has no adapters: lorakit.apply or lorakit.load puts them on")
    return state


def adapter_of(model: nn.Module, name: str | None = None) -> NamedAdapter:
    """Return the adapter of this name, or the one in use.

    Raises: ModelError if the model is not adapted, the name is unknown, or it is not given and not one alone is in use.
    """
    state = state_of(model)
    if name is not None:
        return state.get(name)
    if len(state.used) == 1:
        return state.used[0]
    which = "none of them is" if not state.used else f"{len(state.used)} of them are"
    raise ModelError(f"this model has the adapters {', '.join(state.named)} and {which} in use: give a name")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the adapted model in a module that holds one, such as a compiled one; without any, the module itself.

    Raises: ModelError naming them if there are several.
    """
    if adapted_state(model) is not None:
        return model
    found = adapted_in(model)
    if len(found) > 1:
        named = ", ".join(f"`{path}` ({type(one).__name__})" for path, one in found.items())
        raise ModelError(f"this {type(model).__name__} holds {len(found)} adapted models, {named}: give one of them")
    return next(iter(found.values()), model)


def adapted_in(module: nn.Module) -> dict[str, nn.Module]:
    """Return the adapted models in a module by their paths, itself at the empty one."""
    return {path: one for path, one in module.named_modules() if adapted_state(one) is not None}
