"""Ranks that move once inputs were seen: the plan that comes of it, computed as the first one was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lorakit.errors import PluginError
from lorakit.hooks.manager import Plugins
from lorakit.hooks.protocols import RankMover
from lorakit.language.statements import PluginCall
from lorakit.planning.entries import with_settings, with_shared
from lorakit.planning.plan import Plan, PlanEntry, Settings


def moved(plan: Plan, observed: Mapping[tuple[str, str], Any], plugins: Plugins) -> Plan:
    """Return the plan with the ranks that its initializers give once they have seen (kind, path) inputs.

    The update of a layer is scaled as before; figures are still those of the plan as it was.
    Raises: PluginError if an initializer answers with other layers or ranks.
    """
    ranks: dict[str, int] = {}
    for call, entries in _movers(plan, plugins).items():
        initializer: Any = plugins.initializer(call)
        planned = {entry.path: entry.adapter.settings.rank or 0 for entry in entries if entry.adapter}
        inputs = {path: observed.get(("initializer", path)) for path in planned}
        who = f"initializer `{call.name}` of {plugins.origin(type(initializer))}"
        try:
            answer = initializer.ranks(planned, inputs)
        except Exception as error:
            raise PluginError(f"{who} failed to give ranks: {type(error).__name__}: {error}") from error
        if answer.keys() != planned.keys() or not all(isinstance(rank, int) and rank >= 0 for rank in answer.values()):
            raise PluginError(f"{who} is to give a rank for every layer that it was asked for, and gave {answer!r}")
        ranks |= answer
    if not ranks:
        return plan
    made = (_with_rank(entry, ranks.get(entry.path), plugins) for entry in plan.entries)
    return replace(plan, entries=with_shared([entry for entry in made if entry is not None]))


def _movers(plan: Plan, plugins: Plugins) -> dict[PluginCall, list[PlanEntry]]:
    found: dict[PluginCall, list[PlanEntry]] = {}
    moves: dict[PluginCall, bool] = {}
    for entry in plan.entries:
        call = entry.adapter.settings.init if entry.adapter else None
        if call is None:
            continue
        if call not in moves:
            moves[call] = isinstance(plugins.initializer(call), RankMover)
        if moves[call]:
            found.setdefault(call, []).append(entry)
    return found


def _with_rank(entry: PlanEntry, rank: int | None, plugins: Plugins) -> PlanEntry | None:
    """Return an entry with another rank; without an adapter for rank 0, and None if nothing is left of it then."""
    if rank is None or entry.adapter is None or rank == entry.adapter.settings.rank:
        return entry
    if rank == 0:
        bare = replace(entry, adapter=None)
        return bare if bare.quant else None
    settings = settings_at(entry.adapter.settings, rank)
    return with_settings(entry, settings, plugins)


def settings_at(settings: Settings, rank: int) -> Settings:
    """Return settings with another rank and the alpha that scales the update as before."""
    if settings.alpha is None:
        return replace(settings, rank=rank)
    unit = replace(settings, rank=rank, alpha=1.0).factor
    return replace(settings, rank=rank, alpha=settings.factor / unit)
