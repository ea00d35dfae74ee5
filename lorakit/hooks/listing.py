"""What is installed, as plain data: every plugin with its options, by distribution, and what was left out."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from lorakit.hooks.manager import Plugins
from lorakit.hooks.options import Option, describe_type, options_of, supports_double
from lorakit.hooks.registration import INSTANCES
from lorakit.version import __version__


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """An option as a spec gives it; `default` is None where `required`, or where it may be left open."""

    name: str
    type: str
    required: bool
    default: Any
    help: str


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """A plugin: what a spec calls it and what it says of itself; `double` is of quantizers that can."""

    kind: str
    name: str
    summary: str
    double: bool
    options: tuple[OptionInfo, ...]


@dataclass(frozen=True, slots=True)
class DistributionInfo:
    """A distribution, the plugins that it adds, and the moments of a run at which it is called."""

    distribution: str
    version: str
    plugins: tuple[PluginInfo, ...]
    moments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """All that is installed; `failures` are distributions left out and names that two distributions claim."""

    distributions: tuple[DistributionInfo, ...]
    failures: tuple[str, ...]
    switched_off: tuple[str, ...]


def list_plugins(plugins: Plugins) -> Listing:
    """Return what is installed, lorakit's own first."""
    found: dict[str, list[Any]] = {f"lorakit {__version__}": []}
    for added in plugins.added:
        origin = added.distribution or (
            f"lorakit {__version__}" if added.origin.startswith("lorakit (") else added.origin
        )
        found.setdefault(origin, []).append(added)
    clashes = (
        f"two plugins add the {kind} `{name}`, which belongs to neither: {' and '.join(origins)}"
        for (kind, name), origins in plugins.claims.items()
        if len(origins) > 1
    )
    return Listing(
        tuple(_distribution(origin, parts) for origin, parts in found.items()),
        (*map(str, plugins.failures), *clashes),
        plugins.switched_off,
    )


def _distribution(origin: str, parts: list[Any]) -> DistributionInfo:
    name, _, version = origin.partition(" ")
    plugins = (
        _plugin(kind, item) for added in parts for kind, items in added.plugins.items() for item in items.values()
    )
    moments = dict.fromkeys(moment for added in parts for moment in added.moments)
    return DistributionInfo(name, version, tuple(plugins), tuple(moments))


def _plugin(kind: str, item: Any) -> PluginInfo:
    if kind in INSTANCES:
        summary = getattr(item, "summary", "") or inspect.getdoc(type(item)) or ""
        name = f"@{item.name}" if kind == "role" else item.name
        return PluginInfo(kind, name, str(summary).partition("\n")[0], False, ())
    summary = (inspect.getdoc(item) or "").partition("\n")[0]
    double = kind == "quantizer" and supports_double(item)
    return PluginInfo(kind, item.name, summary, double, tuple(map(_option, options_of(item))))


def _option(option: Option) -> OptionInfo:
    default = None if option.required else option.default
    return OptionInfo(option.name, describe_type(option.type), option.required, default, option.help)
