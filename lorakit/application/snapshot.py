"""A model as it is now, to come back to if what follows fails.

That is its modules, hooks, modes and flags, but no copy of a weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

# what modules keep their parameters, children, hooks and the like in
REGISTRIES = (dict, set)


@contextmanager
def unchanged_on_failure(model: nn.Module, values: Iterable[Tensor] = ()) -> Iterator[None]:
    """Bring a model back to what it is now if the block raises: every module in its place, with every attribute.

    Tensors keep their values but for those that the block changes in place: `values` are the ones that it may.
    """
    modules = list(model.modules())
    attributes, registries = list(_attributes(modules)), list(_registries(modules))
    configs = {id(held): (held, dict(vars(held))) for held in _configs(modules)}
    parameters = [one for module in modules for one in module._parameters.values() if one is not None]
    flags = [parameter.requires_grad for parameter in parameters]
    copies = [(value, value.detach().clone()) for value in values]
    try:
        yield
    except BaseException:
        _restore_attributes(attributes)
        _restore_registries(registries)
        for held, entries in configs.values():
            vars(held).clear()
            vars(held).update(entries)
        for parameter, requires_grad in zip(parameters, flags, strict=True):
            parameter.requires_grad_(requires_grad)
        with torch.no_grad():
            for value, copied in copies:
                value.copy_(copied)
        raise


# A model has thousands of modules of some twenty attributes each: they are held in one row, not in an object for each
# module, and names, which most modules have alike, once.


def _attributes(modules: Iterable[nn.Module]) -> Iterator[Any]:
    """Yield of every module itself, its class, the names of its attributes, and then their values one by one."""
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    for module in modules:
        attributes = vars(module)
        yield module
        yield type(module)
        yield known.setdefault(names := tuple(attributes), names)
        yield from attributes.values()


def _restore_attributes(row: Iterable[Any]) -> None:
    """Give every module its class and attributes back, and leave its registries empty."""
    rest = iter(row)
    for module in rest:
        module.__class__ = next(rest)
        names: tuple[str, ...] = next(rest)
        attributes = vars(module)
        attributes.clear()
        attributes.update(zip(names, islice(rest, len(names)), strict=True))
        for value in attributes.values():
            if isinstance(value, REGISTRIES):
                value.clear()


def _registries(modules: Iterable[nn.Module]) -> Iterator[Any]:
    """Yield of every registry that holds anything itself, how much that is, its keys one by one, and its values."""
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, REGISTRIES) and value:
                yield value
                yield len(value)
                yield from value
                if isinstance(value, dict):
                    yield from value.values()


def _restore_registries(row: Iterable[Any]) -> None:
    """Give registries back what they held."""
    rest = iter(row)
    for registry in rest:
        keys = list(islice(rest, next(rest)))
        registry.update(zip(keys, islice(rest, len(keys)), strict=True) if isinstance(registry, dict) else keys)


def _configs(modules: Iterable[nn.Module]) -> Iterator[Any]:
    """Yield what modules keep as `config` in an object of its own, which several may share."""
    for module in modules:
        held = vars(module).get("config")
        if hasattr(held, "__dict__"):
            yield held
