"""Checks of a role: what it selects from a few models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from lorakit.language.words import name_fault
from lorakit.planning.inventory import Inventory
from lorakit.planning.reading import read_inventory
from lorakit.plugins import load_plugins
from lorakit.testing.causes import require_all
from lorakit.testing.checks import Check, expect, variants_of


def role_checks(role: Any) -> list[Check]:
    """Return every check of a role, which is an instance; each has an `id` and is called."""
    return list(_checks(role))


def check_role(role: Any) -> None:
    """Run every check of a role. Raises: CheckError naming each that failed."""
    require_all(f"role {getattr(role, 'name', role)}", role_checks(role))


def _checks(role: Any) -> Iterator[Check]:
    yield from variants_of(name, role)
    yield from variants_of(selects, role, {model.__name__.strip("_"): (model,) for model in MODELS})


def name(role: Any) -> None:
    """`name` is what a spec can write behind the @."""
    found = getattr(role, "name", None)
    expect(isinstance(found, str), f"`name` is {found!r}; a role is an instance with a name, such as `Mine()`")
    fault = name_fault(str(found))
    expect(not fault or "word of the language" in fault, f"`name` is {found!r}: {fault}")


def selects(role: Any, model: Callable[[], nn.Module]) -> None:
    """`select` returns a frozenset of paths that the model has, the same each time, and none where nothing fits."""
    inventory = _inventory(model)
    found = role.select(inventory)
    expect(isinstance(found, frozenset), f"`select` returned a {type(found).__name__}; return a frozenset of paths")
    unknown = sorted(str(path) for path in found if path not in inventory.modules)
    expect(not unknown, f"`select` returned {', '.join(unknown)}, which are no paths of this model")
    expect(role.select(inventory) == found, "`select` returned other paths the second time")


def _inventory(model: Callable[[], nn.Module]) -> Inventory:
    with torch.device("meta"):
        return read_inventory(model(), load_plugins())


def _plain_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def _nothing_to_adapt() -> nn.Module:
    return nn.ReLU()


def _transformer() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)


def _convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=2))


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            num_hidden_layers=2,
            hidden_size=16,
            intermediate_size=24,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=32,
        )
    )


MODELS = (_plain_layers, _nothing_to_adapt, _transformer, _convolutions, _llama)
