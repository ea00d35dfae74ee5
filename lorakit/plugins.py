"""Where everything comes together: the built-ins and what is installed, as one set of plugins."""

from __future__ import annotations

import copyreg
import functools
import os
from collections.abc import Iterable, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import pluggy

from lorakit import builtin
from lorakit.entry_points import entry_points
from lorakit.errors import PluginError
from lorakit.hooks import specs
from lorakit.hooks.installed import provide
from lorakit.hooks.manager import Failure, Plugins, normal_name
from lorakit.hooks.registration import Added, discard, register

# the distributions whose plugins load, as names with commas between; set and empty: none
CHOICE = "LORAKIT_PLUGINS"
# what pluggy takes for a hook, where it is marked as one
HOOKABLE = (FunctionType, MethodType, staticmethod, classmethod)


@functools.cache
def default_plugins() -> Plugins:
    """Return the built-ins and the plugins of the distributions that are installed here, or of those chosen.

    Raises: PluginError where LORAKIT_PLUGINS names a distribution that has no plugin here.
    """
    return load_plugins(entry_points(specs.PROJECT), chosen=chosen_distributions())


@functools.cache
def vocabulary() -> Plugins:
    """Return the built-ins that a spec can name, or all plugins where LORAKIT_PLUGINS chooses some.

    No plugin replaces a built-in: what a spec means with these alone it means beside any others.
    Raises: PluginError as `default_plugins` does.
    """
    return default_plugins() if chosen_distributions() else Plugins(*_registered(builtin.vocabulary()))


def restored(origins: tuple[str, ...]) -> Plugins:
    """Return the plugins that a pickled model was adapted with: those here, if they come from the same places.

    Raises: PluginError naming what is missing here.
    """
    plugins = default_plugins()
    here = {one.origin for one in plugins.added}
    if missing := [origin for origin in origins if origin not in here]:
        raise PluginError(f"this model was adapted with the plugins of {', '.join(missing)}, which are not loaded here")
    return plugins


provide(default_plugins)
# a model is pickled with its plugins, which are code: what is written is where they came from
copyreg.pickle(Plugins, lambda plugins: (restored, (tuple(one.origin for one in plugins.added),)))


def chosen_distributions() -> tuple[str, ...] | None:
    """Return the names in LORAKIT_PLUGINS, or None where it is not set and every distribution counts."""
    words = os.environ.get(CHOICE)
    return None if words is None else tuple(word.strip() for word in words.split(",") if word.strip())


def load_plugins(
    entry_points: Iterable[Any] = (),
    modules: Mapping[str, Any] | None = None,
    chosen: Iterable[str] | None = None,
) -> Plugins:
    """Return the built-ins, the plugins behind these entry points, and these objects by name.

    A distribution that fails is left out and recorded in `failures`; `chosen` are the only ones to load.
    Raises: PluginError where one of the objects is at fault, or a chosen distribution has no entry point.
    """
    manager, added = _registered(builtin.plugins())
    taken = {claim: one.origin for one in added for claim in one.claims()}
    distributions: dict[str, list[Any]] = {}
    for entry_point in entry_points:
        distributions.setdefault(_origin(entry_point), []).append(entry_point)
    switched_off = _switched_off(distributions, chosen)
    failures: list[Failure] = []
    for origin, points in distributions.items():
        if origin not in switched_off:
            added += _load(manager, origin, points, taken, failures)
    for name, module in (modules or {}).items():
        try:
            added.append(register(manager, module, name, taken))
        except PluginError as error:
            raise PluginError(f"plugin {name}: {error}") from error
    return Plugins(manager, added, failures, switched_off)


def _registered(builtins: Mapping[str, ModuleType]) -> tuple[pluggy.PluginManager, list[Added]]:
    """Return a manager that knows these built-ins, and what they add."""
    manager = _Manager(specs.PROJECT)
    manager.add_hookspecs(specs)
    return manager, [register(manager, module, name, None) for name, module in builtins.items()]


class _Manager(pluggy.PluginManager):
    """A manager that looks closer only at what of a module is marked as a hook: that is little of what it holds."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> pluggy.HookimplOpts | None:
        if isinstance(plugin, ModuleType):
            held = vars(plugin).get(name)
            if not (isinstance(held, HOOKABLE) and hasattr(held, f"{specs.PROJECT}_impl")):
                return None
        return super().parse_hookimpl_opts(plugin, name)


def _origin(entry_point: Any) -> str:
    return f"{entry_point.dist.name} {entry_point.dist.version}" if entry_point.dist else str(entry_point.name)


def _switched_off(distributions: Iterable[str], chosen: Iterable[str] | None) -> tuple[str, ...]:
    """Return those distributions that were not chosen. Raises: PluginError for a choice that is not among them."""
    if chosen is None:
        return ()
    names = {normal_name(origin.partition(" ")[0]): origin for origin in distributions}
    wanted = {normal_name(name): name for name in chosen}
    for normal, name in wanted.items():
        if normal not in names:
            there = f"there are: {', '.join(names)}" if names else "no installed distribution has one"
            raise PluginError(f"{CHOICE} names `{name}`, and no plugin of that distribution is installed; {there}")
    return tuple(origin for normal, origin in names.items() if normal not in wanted)


def _load(
    manager: pluggy.PluginManager,
    distribution: str,
    entry_points: Iterable[Any],
    taken: Mapping[tuple[str, str], str],
    failures: list[Failure],
) -> list[Added]:
    """Return what a distribution adds: all of it, or nothing and a failure more."""
    added: list[Added] = []
    try:
        for entry_point in entry_points:
            plugin = entry_point.load()
            origin = distribution if not added else f"{distribution} ({entry_point.name})"
            added.append(register(manager, plugin, origin, taken)._replace(distribution=distribution))
    # a plugin that calls sys.exit when it is imported must not take everything down either
    except (Exception, SystemExit) as error:
        for one in added:
            discard(manager, one.origin)
        reason = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
        failures.append(Failure(distribution, reason))
        return []
    return added
