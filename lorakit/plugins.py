"""Where everything comes together: the built-ins and what is installed, as one set of plugins."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Mapping
from typing import Any

import pluggy

from lorakit import builtin
from lorakit.errors import LorakitError, PluginError
from lorakit.hooks import specs
from lorakit.hooks.manager import Failure, Plugins


@functools.cache
def default_plugins() -> Plugins:
    """Return the built-ins and every plugin that is installed in this environment."""
    return load_plugins(importlib.metadata.entry_points(group=specs.PROJECT))


def load_plugins(entry_points: Any = (), modules: Mapping[str, Any] | None = None) -> Plugins:
    """Return the built-ins, the plugins behind these entry points, and these objects by name.

    Raises: PluginError where a plugin names a hook that does not exist, or takes arguments that a hook does not have.
    """
    manager = pluggy.PluginManager(specs.PROJECT)
    manager.add_hookspecs(specs)
    for name, module in builtin.plugins().items():
        manager.register(module, name=name)
    failures = []
    for entry_point in entry_points:
        origin = f"{entry_point.dist.name} {entry_point.dist.version}" if entry_point.dist else entry_point.name
        try:
            _register(manager, entry_point.load(), origin)
        except LorakitError:
            raise
        except Exception as error:
            failures.append(Failure(origin, f"{type(error).__name__}: {error}"))
    for name, module in (modules or {}).items():
        _register(manager, module, name)
    return Plugins(manager, tuple(failures))


def _register(manager: pluggy.PluginManager, plugin: Any, origin: str) -> None:
    try:
        manager.register(plugin, name=origin)
        # pluggy takes a misspelled hook name without a word until it is asked
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"plugin {origin}: {error}") from error
