"""What a spec says of its optimizer and another one does not do: told once, when that one first steps the adapters."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lorakit.application.optimizer import is_known, know, parameter_groups
from lorakit.application.optimizer_words import names_optimizer
from lorakit.application.state import Adapted, state_of
from lorakit.language.printer import call_text
from lorakit.paging import Paged
from lorakit.planning.plan import Plan

logger = logging.getLogger("lorakit")


def tell(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Say once what of a model's spec an optimizer that steps its adapters does not do, and what does it."""
    if is_known(optimizer):
        return
    know(optimizer)
    if lost := neglected(model, optimizer):
        logger.warning(
            "an %s steps that is not the spec's; not in force: %s; `lorakit.optimizer(model)` makes the one with them, "
            "for transformers' Trainer as `optimizers=(lorakit.optimizer(model), None)`, or where it refuses that as "
            "`optimizer_cls_and_kwargs=(lorakit.optimizer, {})`",
            type(_inner(optimizer)).__name__, ", ".join(lost),
        )  # fmt: skip


def neglected(model: nn.Module, optimizer: torch.optim.Optimizer) -> Sequence[str]:
    """Return what the plans in use say of the optimizer of what this one steps, and it does not do.

    Each is a statement or a clause as a spec has it, between backquotes where it is one.
    Without a statement on it, the optimizer and a rate that no rule gives are the loop's own.
    """
    state = state_of(model)
    (plan, *_) = (adapter.plan for adapter in state.used)
    rates = {parameter: _rate(group) for group in optimizer.param_groups for parameter in group["params"]}
    groups = parameter_groups(model)
    wanted = _rates_of(groups, rates)
    # what moves with the optimizer's own rate has it
    moved = _rates_of(parameter_groups(model, 2 * plan.optimizer.lr), rates)
    ruled = [rates[one] / rate for one, rate in wanted.items() if moved[one] == rate]
    own = [rates[one] / rate for one, rate in wanted.items() if moved[one] != rate]
    return [
        *_statement(plan, state, optimizer, own),
        *(_rule_rates(state) if not all(map(_is_one, ruled)) else ()),
        *(_shares(state) if any(not math.isclose(one, own[0]) for one in own) else ()),
        *(["`paged`"] if _asks_to_page(groups, plan) and not _pages(optimizer) else ()),
    ]


def _rate(group: Mapping[str, Any]) -> float:
    # a schedule may have begun at nought
    return float(group.get("initial_lr", group.get("lr", math.nan)))


def _rates_of(groups: Iterable[Mapping[str, Any]], held: Mapping[Any, float]) -> dict[nn.Parameter, float]:
    return {parameter: group["lr"] for group in groups for parameter in group["params"] if parameter in held}


def _is_one(quotient: float) -> bool:
    return math.isclose(quotient, 1.0)


def _statement(plan: Plan, state: Adapted, optimizer: torch.optim.Optimizer, quotients: Sequence[float]) -> list[str]:
    """Return the `optimizer` statement, where there is one and any of it is not followed."""
    said = plan.optimizer
    factory = state.plugins.optimizer(said.call)
    # what was written counts, though it be what is meant without
    if not names_optimizer(plan, state.plugins):
        return []
    is_rated = not quotients or any(map(_is_one, quotients))
    if is_rated and _is_kind(factory, said.call.options, optimizer) and (_pages(optimizer) or not said.paged):
        return []
    return [f"`optimizer {call_text(said.call)} lr {said.lr:g}{' paged' * said.paged}`"]


def _is_kind(factory: Any, options: Iterable[tuple[str, Any]], optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer is of the kind that a factory builds, with the options that were given to that."""
    twin = nn.Parameter(torch.zeros(1))
    try:
        made = factory.build([{"params": [twin], "lr": factory.default_lr}])
    # it fails as code does, and a word on an optimizer is not to end its first step
    except Exception:
        return True
    inner = _inner(optimizer)
    mine, theirs = made.param_groups[0], inner.param_groups[0]
    same = all(theirs.get(name, mine.get(name)) == mine.get(name) for name, _ in options)
    return isinstance(inner, type(made)) and same


def _rule_rates(state: Adapted) -> Sequence[str]:
    entries = [entry for adapter in state.used for entry in adapter.plan.entries]
    rates = [rate for entry in entries for rate in (entry.adapter and entry.adapter.lr, entry.train_lr) if rate]
    return [f"`lr {rate:g}`" for rate in dict.fromkeys(rates)]


def _shares(state: Adapted) -> Sequence[str]:
    """Return what gives single parameters another rate than the rest, if anything does."""
    adapters = [entry.adapter for one in state.used for entry in one.plan.entries if entry.adapter]
    ratios = [one.settings.lr_ratio for one in adapters if one.settings.lr_ratio]
    others = any(parameter.rate != 1.0 for one in adapters for parameter in one.parameters)
    return [f"`lr_ratio {one:g}`" for one in dict.fromkeys(ratios)] or ["rates of single parameters"] * others


def _asks_to_page(groups: Iterable[Mapping[str, Any]], plan: Plan) -> bool:
    # or else the statement says so
    return any(group["paged"] for group in groups) and not plan.optimizer.paged


def _pages(optimizer: torch.optim.Optimizer) -> bool:
    if isinstance(optimizer, Paged):
        return optimizer.near_bytes + optimizer.far_bytes > 0
    # bitsandbytes' own
    return bool(getattr(optimizer, "is_paged", False))


def _inner(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    return optimizer.wrapped if isinstance(optimizer, Paged) else optimizer
