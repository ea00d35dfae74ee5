"""`use`: the installed distributions that a program needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorakit.diagnostics import Code
from lorakit.language.place import Place
from lorakit.language.syntax import UseNode

if TYPE_CHECKING:
    from lorakit.hooks import Plugins


def is_installed(node: UseNode, place: Place, plugins: Plugins) -> bool:
    """Return whether a distribution is installed, new enough, and its plugins load; if not, report what to do."""
    import importlib.metadata

    from packaging.version import InvalidVersion, Version

    name, wanted = str(node.distribution), None
    if node.version is not None:
        try:
            wanted = Version(str(node.version))
        except InvalidVersion:
            message, note = f"`{node.version}` is no version", "versions are written `1.2.3`"
            place.report(Code.BAD_VERSION, message, node.version, None, note)
            return True
    install = f"help: pip install '{name}>={wanted}'" if wanted is not None else f"help: pip install {name}"
    try:
        installed = importlib.metadata.version(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        place.report(Code.NOT_INSTALLED, f"`{name}` is not installed", node.distribution, None, install)
        return False
    try:
        too_old = wanted is not None and Version(installed) < wanted
    except InvalidVersion:
        too_old = True
    if too_old and node.version is not None:
        message = f"`{name}` is installed in version {installed}, and this needs {wanted} or later"
        place.report(Code.TOO_OLD, message, node.version, None, install)
        return False
    if plugins.is_switched_off(name):
        note = "help: leave out --no-plugins, or add it to LORAKIT_PLUGINS"
        place.report(Code.NOT_INSTALLED, f"`{name}` is switched off", node.distribution, None, note)
        return False
    failure = plugins.failure_of(name)
    if failure is not None:
        message, note = f"the plugins of `{name}` did not load", f"{failure.distribution}: {failure.reason}"
        place.report(Code.NOT_INSTALLED, message, node.distribution, None, note)
    return failure is None
