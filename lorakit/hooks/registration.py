"""Plugins on their way in: each is read and checked whole before anything of it counts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pluggy

from lorakit.errors import PluginError
from lorakit.hooks import specs
from lorakit.hooks.options import options_of
from lorakit.hooks.protocols import (
    DataFormat,
    DataShape,
    Initializer,
    Kernel,
    Method,
    OptimizerFactory,
    Quantizer,
    Role,
)

# what a plugin can add, by kind
PROTOCOLS: Mapping[str, type] = {
    "quantizer": Quantizer,
    "initializer": Initializer,
    "optimizer": OptimizerFactory,
    "method": Method,
    "role": Role,
    "kernel": Kernel,
    "data format": DataFormat,
    "data shape": DataShape,
}
# kinds without options, registered as instances; all others are classes, which a spec configures
INSTANCES = ("role", "kernel", "data format", "data shape")
# what is a list of words in an item of a kind
LISTS: Mapping[str, tuple[str, ...]] = {"data format": ("suffixes", "marks"), "data shape": ("needs", "may")}
# the kinds whose words belong to one item alone, as its name does
OWNERS = ("data format",)


class Added(NamedTuple):
    """What one plugin object adds: its plugins by kind and name, and the moments at which it is called.

    `distribution` is the installed one, with its version, that it came from; empty for the built-ins.
    """

    origin: str
    plugins: Mapping[str, Mapping[str, Any]]
    moments: tuple[str, ...]
    distribution: str = ""

    def claims(self) -> Iterator[tuple[str, str]]:
        """Yield what it takes for itself: names of plugins, and what else belongs to one alone, each by its kind."""
        for kind, items in self.plugins.items():
            for item in items.values():
                for word in claimed(kind, item):
                    yield kind, word


def claimed(kind: str, item: Any) -> tuple[str, ...]:
    """Return an item's name, and the words that no other of its kind may have."""
    lists = LISTS[kind] if kind in OWNERS else ()
    return (item.name, *(word for words in lists for word in getattr(item, words)))


def register(
    manager: pluggy.PluginManager, plugin: Any, origin: str, taken: Mapping[tuple[str, str], str] | None
) -> Added:
    """Register a plugin object and return what it adds; one that is refused leaves no trace.

    `taken` tells where each plugin comes from, by kind and name, that this one must not replace; None for the built-ins
    themselves, which the tests check once instead of each start.
    Raises: PluginError with the reason, which does not name the origin.
    """
    try:
        _check_version(plugin, origin)
        manager.register(plugin, name=origin)
        _check_hook_names(manager)
        _check_no_wrapper(manager, plugin)
        return _read(manager, plugin, origin, taken)
    except Exception as error:
        discard(manager, origin)
        if isinstance(error, PluginError):
            raise
        if isinstance(error, pluggy.PluginValidationError):
            raise PluginError(" ".join(str(error).split())) from error
        raise PluginError(f"{type(error).__name__}: {error}") from error


def discard(manager: pluggy.PluginManager, origin: str) -> None:
    """Take a plugin out again, if it is in."""
    if manager.has_plugin(origin):
        manager.unregister(name=origin)


def _check_version(plugin: Any, origin: str) -> None:
    stated = getattr(plugin, "lorakit_protocol", specs.PROTOCOL)
    if stated == specs.PROTOCOL:
        return
    if not isinstance(stated, int):
        raise PluginError(f"`lorakit_protocol` is {stated!r}; it is a whole number, {specs.PROTOCOL} here")
    distribution = origin.partition(" ")[0]
    newer = "lorakit" if stated > specs.PROTOCOL else distribution
    raise PluginError(
        f"it speaks plugin protocol {stated} and this lorakit {specs.PROTOCOL}: pip install --upgrade {newer}"
    )


def _check_hook_names(manager: pluggy.PluginManager) -> None:
    # pluggy takes a misspelled hook name without a word
    from lorakit.language.suggestions import nearest

    for name, caller in vars(manager.hook).items():
        if isinstance(caller, pluggy.HookCaller) and not caller.has_spec():
            if all(impl.optionalhook for impl in caller.get_hookimpls()):
                continue
            near = nearest(name, (known for known in vars(specs) if known.startswith("lorakit_")))
            raise PluginError(f"there is no hook `{name}`" + (f"; did you mean `{near}`?" if near else ""))


def _check_no_wrapper(manager: pluggy.PluginManager, plugin: Any) -> None:
    for caller in manager.get_hookcallers(plugin) or []:
        if any(impl.plugin is plugin and (impl.wrapper or impl.hookwrapper) for impl in caller.get_hookimpls()):
            raise PluginError(f"`{caller.name}` is a wrapper; hooks of lorakit are asked one by one and not wrapped")


def _read(
    manager: pluggy.PluginManager, plugin: Any, origin: str, taken: Mapping[tuple[str, str], str] | None
) -> Added:
    plugins: dict[str, dict[str, Any]] = {}
    registries = {f"lorakit_{kind.replace(' ', '_')}s": kind for kind in PROTOCOLS}
    callers = manager.get_hookcallers(plugin) or []
    for caller in callers:
        if caller.name not in registries:
            continue
        kind = registries[caller.name]
        found: dict[str, Any] = {}
        own: set[str] = set()
        for name, item in _items(caller, plugin, kind):
            if taken is not None:
                _check_taken(name, kind, origin, taken)
                _check_kind(name, item, kind)
            for word in claimed(kind, item):
                if word in own:
                    raise PluginError(f"it adds the {kind} `{word}` twice")
                if taken is not None:
                    _check_taken(word, kind, origin, taken)
                own.add(word)
            found[name] = item
        plugins[kind] = found
    moments = tuple(sorted(caller.name for caller in callers if caller.name not in registries))
    return Added(origin, plugins, moments)


def _check_taken(word: str, kind: str, origin: str, taken: Mapping[tuple[str, str], str]) -> None:
    if (kind, word) in taken:
        raise PluginError(
            f"two plugins add `{word}` as {kind}: {taken[kind, word]} and {origin}; a built-in cannot be replaced"
        )


def _items(caller: pluggy.HookCaller, plugin: Any, kind: str) -> Iterator[tuple[str, Any]]:
    """Yield name and item of what a plugin answers to a registry's hook. Raises: PluginError for junk."""
    for impl in caller.get_hookimpls():
        if impl.plugin is not plugin:
            continue
        try:
            answer: list[Any] = list(impl.function())  # type: ignore[call-overload]
        except Exception as error:
            raise PluginError(f"{caller.name} failed: {type(error).__name__}: {error}") from error
        for item in answer:
            name = getattr(item, "name", None)
            if not isinstance(name, str):
                raise PluginError(f"{caller.name} returned {item!r}, which has no `name`")
            yield name, item


def _check_kind(name: str, item: Any, kind: str) -> None:
    """Check an item against the protocol of its kind. Raises: PluginError naming what is missing."""
    if kind not in INSTANCES:
        if not inspect.isclass(item):
            raise PluginError(f"the {kind} `{name}` is {item!r}; return its class, which a spec configures")
        try:
            options_of(item)
        except Exception as error:
            raise PluginError(f"the {kind} `{name}` is no dataclass with typed fields: {error}") from error
    elif inspect.isclass(item):
        raise PluginError(f"the {kind} `{name}` is a class; return an instance: `{item.__name__}()`")
    protocol = PROTOCOLS[kind]
    for attribute in vars(protocol).get("__annotations__", {}):
        if not hasattr(item, attribute):
            raise PluginError(f"the {kind} `{name}` has no `{attribute}`")
    for attribute in LISTS.get(kind, ()):
        words = getattr(item, attribute, None)
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
            raise PluginError(f"`{attribute}` of the {kind} `{name}` is {words!r}; it is a tuple of texts, or ()")
    for method, function, parameters in _methods(protocol):
        own = getattr(item, method, None)
        # whoever inherits from the protocol inherits its empty methods
        if own is None or getattr(own, "__func__", own) is function or not callable(own):
            raise PluginError(f"the {kind} `{name}` has no method `{method}({', '.join(parameters)})`")
        if not _takes(own, len(parameters) + inspect.isclass(item)):
            raise PluginError(f"`{method}` of the {kind} `{name}` does not take ({', '.join(parameters)})")


@functools.cache
def _methods(protocol: type) -> list[tuple[str, Any, list[str]]]:
    """Return the methods of a protocol, with what they take; `_is_protocol` and its like are typing's own."""
    return [
        (name, value, [word for word in inspect.signature(value).parameters if word != "self"])
        for name, value in vars(protocol).items()
        if inspect.isfunction(value) and not name.startswith("_")
    ]


def _takes(function: Any, count: int) -> bool:
    """Return whether a function can be called with so many arguments; one that cannot tell is believed."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:
        return True
    return True
