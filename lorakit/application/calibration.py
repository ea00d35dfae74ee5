"""Calibration: the model runs once over data, and quantizers that ask for it see what goes into their layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.application.layers import core_of
from lorakit.errors import DataError, LorakitError, PlanError, PluginError
from lorakit.hooks.manager import Plugins
from lorakit.hooks.protocols import CalibratedQuantizer
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.planning.plan import Plan, PlanEntry


def calibrated(plan: Plan, model: nn.Module, plugins: Plugins) -> dict[str, CalibratedQuantizer]:
    """Return the quantizers that have to see inputs first, by path; a layer that is stored quantized needs none."""
    modules = dict(model.named_modules())
    wanted = {}
    for entry in plan.entries:
        quantizer = plugins.quantizer(entry.quant) if entry.quant else None
        module = modules.get(entry.path)
        is_stored = module is not None and isinstance(core_of(module), QuantizedLinear)
        if isinstance(quantizer, CalibratedQuantizer) and not is_stored:
            wanted[entry.path] = quantizer
    return wanted


def observe(plan: Plan, model: nn.Module, plugins: Plugins, batches: Iterable[Any] | None) -> dict[str, Any]:
    """Return what every calibrated quantizer saw of its layer's inputs, by path; None for a layer that nobody called.

    A batch is what the model's forward takes: a mapping by name, a tuple in order, or one tensor. The model runs in
    evaluation mode without gradients, and is afterwards as it was.
    Raises: PlanError if there is need for data and none, DataError for a batch that the model does not take,
    PluginError naming the quantizer that fails.
    """
    wanted = calibrated(plan, model, plugins)
    if not wanted:
        return {}
    if batches is None:
        name = next(iter(wanted.values())).name
        raise PlanError(f"{name} needs calibration data: give calibration=… (--calibration DATA on the command line)")
    seen: dict[str, Any] = dict.fromkeys(wanted)
    with _evaluating(model), torch.no_grad(), _hooked(model, _watchers(wanted, seen, plan, plugins)):
        number = 0
        for number, batch in enumerate(batches, 1):
            _run(model, batch, number)
        if not number:
            raise DataError("the calibration data holds no batch")
    return seen


def _watchers(
    wanted: Mapping[str, CalibratedQuantizer], seen: dict[str, Any], plan: Plan, plugins: Plugins
) -> dict[str, Callable[[Tensor], None]]:
    """Return, by path, what takes note of a layer's input."""

    def watcher(entry: PlanEntry) -> Callable[[Tensor], None]:
        def watch(x: Tensor) -> None:
            try:
                seen[entry.path] = wanted[entry.path].observe(x, seen[entry.path])
            except Exception as error:
                assert entry.quant is not None
                origin = plugins.origin(plugins.quantizers[entry.quant.name])
                raise PluginError(
                    f"quantizer `{entry.quant.name}` of {origin} failed to observe `{entry.path}`, "
                    f"given {tuple(x.shape)}: {type(error).__name__}: {error}"
                ) from error

        return watch

    return {entry.path: watcher(entry) for entry in plan.entries if entry.path in wanted}


@contextmanager
def _hooked(model: nn.Module, watchers: Mapping[str, Callable[[Tensor], None]]) -> Iterator[None]:
    """Show the input of every call that the layer took to its watcher, and leave no hook behind."""
    handles = []
    try:
        for path, watch in watchers.items():

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
            model(**{name: _moved(value, device) for name, value in batch.items()})
        elif isinstance(batch, tuple | list):
            model(*(_moved(value, device) for value in batch))
        else:
            model(_moved(batch, device))
    except LorakitError:
        raise
    except Exception as error:
        raise DataError(
            f"the model does not take calibration batch {number}: {type(error).__name__}: {error}; "
            "a batch is a dict of arguments by name, a tuple of arguments, or one tensor"
        ) from error


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
