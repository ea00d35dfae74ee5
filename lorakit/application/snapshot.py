"""A model as it is now, to come back to if what follows fails: its modules, hooks, modes and flags, but no copy of a
weight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def unchanged_on_failure(model: nn.Module, values: Iterable[Tensor] = ()) -> Iterator[None]:
    """Bring a model back to what it is now if the block raises: every module in its place, with every attribute.

    Tensors keep their values but for those that the block changes in place: `values` are the ones that it may.
    """
    modules = [_Attributes(module) for module in model.modules()]
    configs = {id(held): (held, dict(vars(held))) for held in _configs(model)}
    frozen = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    copies = [(value, value.detach().clone()) for value in values]
    try:
        yield
    except BaseException:
        for module in modules:
            module.restore()
        for held, attributes in configs.values():
            vars(held).clear()
            vars(held).update(attributes)
        for parameter, requires_grad in frozen:
            parameter.requires_grad_(requires_grad)
        with torch.no_grad():
            for value, copied in copies:
                value.copy_(copied)
        raise


class _Attributes:
    """One module's class and attributes, and what its registries hold."""

    __slots__ = ("kind", "module", "names", "registries", "values")

    def __init__(self, module: nn.Module) -> None:
        attributes = vars(module)
        self.module, self.kind = module, type(module)
        # most modules have the same names, and most registries of a module are empty: a model has thousands of them
        self.names = _known_names(tuple(attributes))
        self.values = tuple(attributes.values())
        self.registries = tuple((value, value.copy()) for value in self.values if _is_registry(value) and value)

    def restore(self) -> None:
        self.module.__class__ = self.kind
        attributes = vars(self.module)
        attributes.clear()
        attributes.update(zip(self.names, self.values, strict=True))
        for value in self.values:
            if _is_registry(value):
                value.clear()
        for registry, held in self.registries:
            registry.update(held)


_NAMES: dict[tuple[str, ...], tuple[str, ...]] = {}


def _known_names(names: tuple[str, ...]) -> tuple[str, ...]:
    return _NAMES.setdefault(names, names)


def _is_registry(value: Any) -> bool:
    return isinstance(value, dict | set)


def _configs(model: nn.Module) -> Iterator[Any]:
    """Yield what modules keep as `config` in an object of its own, which several may share."""
    for module in model.modules():
        held = vars(module).get("config")
        if hasattr(held, "__dict__"):
            yield held
