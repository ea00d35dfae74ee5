"""The model runs once over calibration data, and plugins that ask for it see what goes into their layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.application.batches import moved
from lorakit.application.places import base_layer_of
from lorakit.errors import DataError, LorakitError, PlanError, PluginError
from lorakit.hooks.manager import Plugins
from lorakit.hooks.protocols import Observer
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.planning.plan import Plan, PlanEntry
from lorakit.planning.wrappers import plain_modules


@dataclass(frozen=True, slots=True)
class Watched:
    """A layer whose inputs a plugin wants to see: `kind` is `quantizer` or `initializer`."""

    path: str
    kind: str
    observer: Observer
    name: str


def watched(plan: Plan, model: nn.Module, plugins: Plugins, *, initialize: bool = True) -> list[Watched]:
    """Return the layers whose inputs have to be seen first; a layer that is stored quantized needs no quantizer.

    Without `initialize` the start values come from elsewhere, and no initializer looks.
    """
    # asking a protocol takes longer than all else that a layer costs here
    looks: dict[Any, bool] = {}
    found: list[Watched] = []
    for entry in plan.entries:
        if entry.quant:
            found += _watching(entry, "quantizer", plugins.quantizer(entry.quant), looks)
        if entry.adapter and entry.adapter.settings.init and initialize:
            found += _watching(entry, "initializer", plugins.initializer(entry.adapter.settings.init), looks)
    if not found:
        return []
    modules = plain_modules(model.named_modules())
    stored = {path for path, module in modules.items() if isinstance(base_layer_of(module), QuantizedLinear)}
    return [one for one in found if one.kind != "quantizer" or one.path not in stored]


def _watching(entry: PlanEntry, kind: str, plugin: Any, looks: dict[Any, bool]) -> list[Watched]:
    if type(plugin) not in looks:
        looks[type(plugin)] = isinstance(plugin, Observer)
    if not looks[type(plugin)]:
        return []
    if entry.shape and not entry.shape.is_linear:
        raise PlanError(
            f"`{plugin.name}` looks at what goes into linear layers, and `{entry.path}` is a {entry.class_name}: "
            f"leave it out with `except {entry.path}`, or give it another `init`"
        )
    return [Watched(entry.path, kind, plugin, plugin.name)]


def observe(
    plan: Plan, model: nn.Module, plugins: Plugins, batches: Iterable[Any] | None, *, initialize: bool = True
) -> dict[tuple[str, str], Any]:
    """Return what every observer saw of its layer's inputs, by (kind, path); None for a layer that nobody called.

    A batch is what the model's forward takes: a mapping by name, a tuple in order, or one tensor. The model runs in
    evaluation mode without gradients, and is afterwards as it was.
    Raises: PlanError if there is need for data and none, DataError for a batch that the model does not take,
    PluginError naming the plugin that fails.
    """
    wanted = watched(plan, model, plugins, initialize=initialize)
    if not wanted:
        return {}
    if batches is None:
        raise PlanError(
            f"{wanted[0].name} needs calibration data: give calibration=… (--calibration DATA on the command line)"
        )
    observed: dict[tuple[str, str], Any] = {(one.kind, one.path): None for one in wanted}
    with _evaluating(model), torch.no_grad(), _hooked(model, _watchers(wanted, observed, plugins)):
        number = 0
        for number, batch in enumerate(batches, 1):
            _run(model, batch, number)
        if not number:
            raise DataError("the calibration data holds no batch")
    return observed


def _watchers(
    wanted: Iterable[Watched], observed: dict[tuple[str, str], Any], plugins: Plugins
) -> list[tuple[str, Callable[[Tensor], None]]]:
    """Return what takes note of a layer's input, each with the layer's path."""

    def watcher(one: Watched) -> Callable[[Tensor], None]:
        def watch(x: Tensor) -> None:
            key = (one.kind, one.path)
            try:
                observed[key] = one.observer.observe(x, observed[key])
            except Exception as error:
                raise PluginError(
                    f"{one.kind} `{one.name}` of {plugins.origin(type(one.observer))} failed to observe `{one.path}`, "
                    f"given {tuple(x.shape)}: {type(error).__name__}: {error}"
                ) from error

        return watch

    return [(one.path, watcher(one)) for one in wanted]


@contextmanager
def _hooked(model: nn.Module, watchers: Iterable[tuple[str, Callable[[Tensor], None]]]) -> Iterator[None]:
    """Show the input of every call that the layer took to its watcher, and leave no hook behind."""
    handles = []
    try:
        for path, watch in watchers:

            def hook(_: nn.Module, args: Any, kwargs: Any, __: Any, watch: Callable[[Tensor], None] = watch) -> None:
                watch(next(iter((*args, *kwargs.values()))))

            handles.append(model.get_submodule(path).register_forward_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a while; each of its modules may have had a mode of its own."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _run(model: nn.Module, batch: Any, number: int) -> None:
    device = next(model.parameters()).device
    try:
        if isinstance(batch, Mapping):
            model(**{name: moved(value, device) for name, value in batch.items()})
        elif isinstance(batch, tuple | list):
            model(*(moved(value, device) for value in batch))
        else:
            model(moved(batch, device))
    except LorakitError:
        raise
    except Exception as error:
        raise DataError(
            f"the model does not take calibration batch {number}: {type(error).__name__}: {error}; "
            "a batch is a dict of arguments by name, a tuple of arguments, or one tensor"
        ) from error
