"""The plugins that are installed here, for code that a library calls and that nobody hands any to."""

from __future__ import annotations

from collections.abc import Callable

from lorakit.hooks.manager import Plugins

_sources: list[Callable[[], Plugins]] = []


def provide(source: Callable[[], Plugins]) -> None:
    """Let `installed` ask here, and nowhere else."""
    _sources[:] = [source]


def installed() -> Plugins:
    """Return the plugins of this process, as whoever gathers them says."""
    (source,) = _sources
    return source()
