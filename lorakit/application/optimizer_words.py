"""What a spec says of the optimizer, for whoever uses another."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lorakit.application.state import Adapted, NamedAdapter
from lorakit.hooks.manager import Plugins
from lorakit.language.printer import call_text
from lorakit.planning.plan import Plan
from lorakit.planning.planner import DEFAULT_OPTIMIZER

STATEMENT = re.compile(r"(^|[;{])\s*optimizer\b", re.MULTILINE)


def said_of_optimizer(state: Adapted) -> list[str]:
    """Return what the specs of the adapters in use say of the optimizer: its name, rates, and paging; perhaps nothing.

    Each is a line or a clause as a spec has it, between backquotes where it is one.
    """
    return list(dict.fromkeys(word for one in state.used for word in _words(one, state.plugins)))


def _words(adapter: NamedAdapter, plugins: Plugins) -> Iterable[str]:
    plan = adapter.plan
    if names_optimizer(plan, plugins):
        optimizer = plan.optimizer
        yield f"`optimizer {call_text(optimizer.call)} lr {optimizer.lr:g}{' paged' * optimizer.paged}`"
    adapters = [one.adapter for one in plan.entries if one.adapter is not None]
    rates = [*(one.lr for one in adapters), *(one.train_lr for one in plan.entries)]
    for rate in dict.fromkeys(filter(None, rates)):
        yield f"`lr {rate:g}`"
    if any(parameter.rate != 1.0 for one in adapters for parameter in one.parameters):
        yield "rates of single parameters"
    if any(one.paged for one in adapters) and not plan.optimizer.paged:
        yield "`paged`"


def names_optimizer(plan: Plan, plugins: Plugins) -> bool:
    """Return whether a plan's optimizer was asked for, and is not the one that a spec without a word on it has."""
    usual = (DEFAULT_OPTIMIZER, plugins.optimizers[DEFAULT_OPTIMIZER.name].default_lr, False)
    chosen = plan.optimizer
    return (chosen.call, chosen.lr, chosen.paged) != usual or STATEMENT.search(plan.source) is not None
