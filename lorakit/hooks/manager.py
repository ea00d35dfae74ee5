"""The plugin manager as one explicit value: what plugins add, and the moments at which they are called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pluggy

from lorakit.errors import LorakitError, PluginError
from lorakit.hooks.options import OptionError, configure
from lorakit.hooks.protocols import Initializer, Method, OptimizerFactory, Quantizer, Role

if TYPE_CHECKING:
    from lorakit.language.spec import PluginCall


@dataclass(frozen=True, slots=True)
class Failure:
    """A distribution whose plugin could not be loaded."""

    distribution: str
    reason: str


class Plugins:
    """Everything that plugins add, by name, and the moments at which they are called."""

    def __init__(self, manager: pluggy.PluginManager, failures: tuple[Failure, ...] = ()) -> None:
        self._manager = manager
        self._origins: dict[int, str] = {}
        self._configured: dict[tuple[str, PluginCall], Any] = {}
        self.failures = failures
        self.quantizers: Mapping[str, type[Quantizer]] = self._registry("lorakit_quantizers")
        self.initializers: Mapping[str, type[Initializer]] = self._registry("lorakit_initializers")
        self.optimizers: Mapping[str, type[OptimizerFactory]] = self._registry("lorakit_optimizers")
        self.methods: Mapping[str, type[Method]] = self._registry("lorakit_methods")
        self.roles: Mapping[str, Role] = self._registry("lorakit_roles")

    def quantizer(self, call: PluginCall) -> Quantizer:
        """Return the quantizer that a call names, configured. Raises: PluginError."""
        return self._configured_as("quantizer", self.quantizers, call)  # type: ignore[no-any-return]

    def initializer(self, call: PluginCall) -> Initializer:
        """Return the initializer that a call names, configured. Raises: PluginError."""
        return self._configured_as("initializer", self.initializers, call)  # type: ignore[no-any-return]

    def optimizer(self, call: PluginCall) -> OptimizerFactory:
        """Return the optimizer factory that a call names, configured. Raises: PluginError."""
        return self._configured_as("optimizer", self.optimizers, call)  # type: ignore[no-any-return]

    def method(self, call: PluginCall) -> Method:
        """Return the method that a call names, configured. Raises: PluginError."""
        return self._configured_as("method", self.methods, call)  # type: ignore[no-any-return]

    def call(self, hook: str, **arguments: Any) -> Any:
        """Call a moment and return what it answers: one value for 'first result' hooks, else a list.

        Raises: PluginError naming the plugin that raised, unless what it raised was a LorakitError.
        """
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        try:
            return caller(**arguments)
        except LorakitError:
            raise
        except Exception as error:
            culprit = _running(caller, error.__traceback__)
            raise PluginError(f"plugin {culprit} failed in {hook}: {type(error).__name__}: {error}") from error

    def pass_through(self, hook: str, argument: str, value: Any) -> Any:
        """Give a value to every plugin in turn, each the one that the plugin before made of it.

        Raises: PluginError naming the plugin that raised.
        """
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        for impl in caller.get_hookimpls():
            try:
                changed = impl.function(**{argument: value})
            except LorakitError:
                raise
            except Exception as error:
                raise PluginError(
                    f"plugin {impl.plugin_name} failed in {hook}: {type(error).__name__}: {error}"
                ) from error
            value = value if changed is None else changed
        return value

    def distributions(self) -> Iterator[tuple[str, str]]:
        """Yield the name and version of every installed distribution that has a plugin."""
        for _, distribution in self._manager.list_plugin_distinfo():
            yield distribution.project_name, distribution.version

    def origin(self, item: Any) -> str:
        """Return the distribution that a registered object comes from, with its version."""
        return self._origins[id(item)]

    def _registry(self, hook: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for impl in getattr(self._manager.hook, hook).get_hookimpls():
            origin = impl.plugin_name
            try:
                items = list(impl.function())
            except Exception as error:
                raise PluginError(f"plugin {origin} failed in {hook}: {type(error).__name__}: {error}") from error
            for item in items:
                name = getattr(item, "name", None)
                if not isinstance(name, str):
                    raise PluginError(f"plugin {origin} returned {item!r} from {hook}, which has no `name`")
                if name in found:
                    raise PluginError(
                        f"two plugins add `{name}` through {hook}: {self._origins[id(found[name])]} and {origin}"
                    )
                found[name] = item
                self._origins[id(item)] = origin
        return dict(sorted(found.items()))

    def _configured_as(self, kind: str, registry: Mapping[str, Any], call: PluginCall) -> Any:
        # a plan asks for the same few again and again; what it gets is frozen
        if (kind, call) not in self._configured:
            try:
                self._configured[kind, call] = configure(self._named(registry, kind, call), call)
            except OptionError as error:
                raise PluginError(str(error)) from error
        return self._configured[kind, call]

    def _named(self, registry: Mapping[str, Any], kind: str, call: PluginCall) -> Any:
        if call.name in registry:
            return registry[call.name]
        broken = "".join(f"; {failure.distribution} did not load: {failure.reason}" for failure in self.failures)
        raise PluginError(f"no {kind} is called `{call.name}`; there are: {', '.join(registry)}{broken}")


def _running(caller: pluggy.HookCaller, traceback: TracebackType | None) -> str:
    """Return the name of the plugin whose function is on this traceback."""
    running = set()
    while traceback is not None:
        running.add(traceback.tb_frame.f_code)
        traceback = traceback.tb_next
    names = [impl.plugin_name for impl in caller.get_hookimpls() if getattr(impl.function, "__code__", None) in running]
    return names[-1] if names else "(unknown)"
