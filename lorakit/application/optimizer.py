"""The optimizer of an adapted model: the spec's groups, each with its learning rate, and what of its state pages."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from lorakit.application.layout import blocks_of, casts_what_trains, check_pieces, is_to_be_sharded
from lorakit.application.places import full_parameters, own_parameters
from lorakit.application.sharding import as_shard, is_sharded, is_sharded_tensor
from lorakit.application.state import NamedAdapter, state_of, unwrapped
from lorakit.application.trainables import frozen_words, trainables
from lorakit.dtypes import BF16_STEPS, name_of
from lorakit.errors import ModelError
from lorakit.hooks.protocols import OptimizerFactory
from lorakit.paging import Paged
from lorakit.planning.place import Place

logger = logging.getLogger(__name__)
# of a parameter's weights, those that no step moves
MOST = 0.5
_known: WeakSet[torch.optim.Optimizer] = WeakSet()


def build_optimizer(model: nn.Module, lr: float | None = None) -> torch.optim.Optimizer:
    """Return the optimizer that the plan names, over everything that trains: the adapters in use.

    `lr` replaces the optimizer's own learning rate; a rule's `lr` stays, and a method may multiply that of single
    parameters, as LoRA does by `lr_ratio`. Where the plan says `paged`, the state of those parameters pages.
    Raises: ModelError if the model is not adapted, the adapters in use name different optimizers, or the one that they
    name cannot page, or not step what several processes share.
    """
    # a config's 1e-4 may come as a string, and a rate of nought or below trains nothing or the opposite
    if lr is not None and not (isinstance(lr, int | float) and 0 < lr < math.inf):
        raise ModelError(f"lr is a number above 0, such as 2e-4, not {lr!r}")
    factory, groups = _factory(model), parameter_groups(model, lr)
    _say_if_lost(model, groups)
    paged = {parameter for group in groups if group.pop("paged") for parameter in group["params"]}
    is_to_be = os.environ.get("ACCELERATE_USE_FSDP") == "true" or is_to_be_sharded()
    if is_to_be or is_sharded(unwrapped(model)):
        if paged:
            raise ModelError(
                "paged: FSDP shards what trains, and no page holds the state of a shard; leave out `paged`"
            )
        _check_takes_shards(factory, [parameter for group in groups for parameter in group["params"]])
    if is_to_be and not casts_what_trains():
        check_pieces(unwrapped(model), blocks_of(unwrapped(model)))
    optimizer = factory.build(groups)
    know(optimizer)
    if not paged:
        return optimizer

    def state(parameter: nn.Parameter) -> Mapping[str, tuple[tuple[int, ...], str]]:
        return factory.state(tuple(parameter.shape), name_of(parameter.dtype))

    pager = Paged(optimizer, parameters=paged, state=state, shared=getattr(factory, "shared_state", ()))
    know(pager)
    return pager


def know(optimizer: torch.optim.Optimizer) -> None:
    """Take an optimizer for one of which nothing is left to say."""
    _known.add(optimizer)


def is_known(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer is `build_optimizer`'s, or all was said of it, whatever pages stand around it."""
    return optimizer in _known or (isinstance(optimizer, Paged) and optimizer.wrapped in _known)


def _check_takes_shards(factory: OptimizerFactory, parameters: Sequence[nn.Parameter]) -> None:
    """Take a step on one more parameter like the largest, as a shard: whoever wrote it may have had none in mind."""
    largest = max(parameters, key=torch.numel).detach()
    twin = nn.Parameter(torch.zeros_like(largest if is_sharded_tensor(largest) else as_shard(largest)))
    twin.grad = torch.zeros_like(twin)
    try:
        factory.build([{"params": [twin], "lr": factory.default_lr}]).step()
    # it fails as code does
    except Exception as error:
        raise ModelError(
            f"`{factory.name}` cannot step what is sharded over processes: {error}; name another `optimizer`, as adamw"
        ) from error


def _say_if_lost(model: nn.Module, groups: Iterable[Mapping[str, Any]]) -> None:
    """Say which of the model's own parameters bfloat16 keeps where they are, for most steps of this learning rate."""
    rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    lost = {
        Place(entry.path).inside(name): rates[parameter]
        for adapter in state_of(model).used
        for entry in adapter.plan.entries
        for name, parameter in full_parameters(unwrapped(model), entry).items()
        if parameter.dtype == torch.bfloat16 and parameter in rates and not parameter.is_meta
        and bool((_local(parameter).abs() > rates[parameter] * BF16_STEPS).float().mean() > MOST)
    }  # fmt: skip
    if lost:
        name, rate = next(iter(lost.items()))
        logger.warning(
            "%d parameters that train in bf16, first `%s`, lose most steps of lr %g, which is less than half of what "
            "lies between two such numbers: write `step compute fp32`, and they train in fp32",
            len(lost), name, rate,
        )  # fmt: skip


def _local(parameter: nn.Parameter) -> torch.Tensor:
    """Return a parameter's values, of a sharded one those that lie here."""
    values = parameter.detach()
    return values.to_local() if hasattr(values, "to_local") else values


def keeps_lr(model: nn.Module) -> bool:
    """Return whether the plan's optimizer asks for a learning rate that does not fall."""
    return bool(getattr(_factory(model), "constant_lr", False))


def _factory(model: nn.Module) -> OptimizerFactory:
    state = state_of(model)
    used = state.used
    calls = {adapter.plan.optimizer.call for adapter in used}
    if len(calls) > 1:
        raise ModelError(f"the adapters in use, {', '.join(one.name for one in used)}, name different optimizers")
    if not used:
        raise ModelError("no adapter of this model is in use: nothing trains")
    return state.plugins.optimizer(calls.pop())


def parameter_groups(model: nn.Module, lr: float | None = None) -> list[dict[str, Any]]:
    """Return parameter groups with `params`, `lr` and `paged`, one for each pair of the latter two."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for adapter in state_of(model).used:
        _collect(unwrapped(model), adapter, adapter.plan.optimizer.lr if lr is None else lr, groups)
    if not groups:
        found = trainables(unwrapped(model))
        raise ModelError(frozen_words(found) if found else "nothing in this model trains: the plan only quantizes")
    return [{"params": parameters, "lr": rate, "paged": paged} for (rate, paged), parameters in groups.items()]


def _collect(
    model: nn.Module, named: NamedAdapter, default: float, groups: dict[tuple[float, bool], list[nn.Parameter]]
) -> None:
    """Add what an adapter trains to the groups, each parameter once."""
    seen = {parameter for parameters in groups.values() for parameter in parameters}
    for entry in named.plan.entries:
        adapter = entry.adapter
        rate = (adapter.lr if adapter else entry.train_lr) or default
        paged = named.plan.optimizer.paged or bool(adapter and adapter.paged)
        own = own_parameters(named.modules[entry.path], entry) if adapter else {}
        rates = {one.name: one.rate for one in adapter.parameters} if adapter else {}
        for name, parameter in (own | full_parameters(model, entry)).items():
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                groups.setdefault((rate * rates.get(name, 1.0), paged), []).append(parameter)
