"""The plugin manager as one explicit value: what plugins add, and the moments at which they are called."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pluggy

from lorakit.errors import PluginError
from lorakit.hooks.moments import Moments
from lorakit.hooks.options import OptionError, configure
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
from lorakit.hooks.registration import Added, claimed

if TYPE_CHECKING:
    from lorakit.language.statements import PluginCall


class Failure(NamedTuple):
    """A distribution, with its version, whose plugin was left out."""

    distribution: str
    reason: str

    def __str__(self) -> str:
        return f"{self.distribution} did not load: {self.reason}"


class Plugins(Moments):
    """Everything that plugins add, by name, and the moments at which they are called."""

    def __init__(
        self,
        manager: pluggy.PluginManager,
        added: Sequence[Added],
        failures: Sequence[Failure] = (),
        switched_off: Sequence[str] = (),
    ) -> None:
        super().__init__(manager)
        self._origins: dict[int, str] = {}
        self._configured: dict[tuple[str, PluginCall], Any] = {}
        self.added = tuple(added)
        self.failures = tuple(failures)
        self.switched_off = tuple(switched_off)
        self.claims = _claims(added)
        self.quantizers: Mapping[str, type[Quantizer]] = self._registry("quantizer")
        self.initializers: Mapping[str, type[Initializer]] = self._registry("initializer")
        self.optimizers: Mapping[str, type[OptimizerFactory]] = self._registry("optimizer")
        self.methods: Mapping[str, type[Method]] = self._registry("method")
        self.roles: Mapping[str, Role] = self._registry("role")
        self.kernels: tuple[Kernel, ...] = self._in_order_of_asking("kernel")
        self.data_formats: Mapping[str, DataFormat] = self._registry("data format")
        self.data_shapes: tuple[DataShape, ...] = self._in_order_of_asking("data shape")

    def __deepcopy__(self, memo: dict[int, Any]) -> Plugins:
        # a value that no copy changes; a copy of a model keeps the very plugins that adapted it
        return self

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

    def distributions(self) -> Iterator[tuple[str, str]]:
        """Yield the name and version of every installed distribution whose plugins are loaded."""
        for origin in dict.fromkeys(added.distribution for added in self.added if added.distribution):
            name, _, version = origin.partition(" ")
            yield name, version

    def is_switched_off(self, distribution: str) -> bool:
        """Return whether a distribution is installed and its plugins were not chosen to load."""
        return any(_is_of(origin, distribution) for origin in self.switched_off)

    def failure_of(self, distribution: str) -> Failure | None:
        """Return why a distribution's plugins were left out, if they were."""
        return next((one for one in self.failures if _is_of(one.distribution, distribution)), None)

    def absence(self, kind: str, name: str) -> tuple[str, ...]:
        """Return what may be why there is no plugin of this name: two that claim it, what failed, what is off."""
        reasons = []
        if len(claims := self.claims.get((kind, name), ())) > 1:
            reasons.append(
                f"two plugins add `{name}`: {' and '.join(claims)}; uninstall one, or name the other in LORAKIT_PLUGINS"
            )
        reasons += map(str, self.failures)
        if self.switched_off:
            reasons.append(f"switched off (--no-plugins or LORAKIT_PLUGINS): {', '.join(self.switched_off)}")
        return tuple(reasons)

    def origin(self, item: Any) -> str:
        """Return the distribution that a registered object comes from, with its version."""
        return self._origins[id(item)]

    def _registry(self, kind: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for added in self.added:
            for name, item in added.plugins.get(kind, {}).items():
                self._origins[id(item)] = added.origin
                if all(len(self.claims[kind, word]) == 1 for word in claimed(kind, item)):
                    found[name] = item
        return dict(sorted(found.items()))

    def _in_order_of_asking(self, kind: str) -> tuple[Any, ...]:
        registry = self._registry(kind)
        added = [item for one in self.added for item in one.plugins.get(kind, {}).values()]
        return tuple(item for item in reversed(added) if registry.get(item.name) is item)

    def _configured_as(self, kind: str, registry: Mapping[str, Any], call: PluginCall) -> Any:
        # a plan asks for the same few again and again; what it gets is frozen
        if (known := self._configured.get((kind, call))) is not None:
            return known
        try:
            made = self._configured[kind, call] = configure(self._named(registry, kind, call), call)
        except OptionError as error:
            raise PluginError(str(error)) from error
        return made

    def _named(self, registry: Mapping[str, Any], kind: str, call: PluginCall) -> Any:
        if call.name in registry:
            return registry[call.name]
        reasons = "".join(f"; {reason}" for reason in self.absence(kind, call.name))
        raise PluginError(f"no {kind} is called `{call.name}`; there are: {', '.join(registry)}{reasons}")


def _is_of(origin: str, distribution: str) -> bool:
    return normal_name(origin.partition(" ")[0]) == normal_name(distribution)


def normal_name(distribution: str) -> str:
    """Return the name of a distribution as the package index compares it: `A_b` and `a-B` are one."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _claims(added: Sequence[Added]) -> Mapping[tuple[str, str], tuple[str, ...]]:
    """Return where each plugin comes from, by kind and what it claims; what comes from two places is nobody's."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in added:
        for claim in one.claims():
            found.setdefault(claim, []).append(one.origin)
    return {key: tuple(origins) for key, origins in found.items()}
