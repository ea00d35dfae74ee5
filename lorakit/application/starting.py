"""The first values of adapters, and the form in which weights are stored, with the original weight in hand.

The one road for models in memory and for those that are quantized while they are read: observe → start → store, and the
adapter is built around what was stored, so that whoever multiplies is chosen once, for good.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lorakit.application.storing import as_matrix, as_weight, quantized_weight
from lorakit.dtypes import dtype_of
from lorakit.errors import LorakitError, PlanError, PluginError
from lorakit.hooks.manager import Plugins
from lorakit.hooks.starting import StartContext
from lorakit.planning.plan import Plan, PlanEntry
from lorakit.values import QuantizedWeight

logger = logging.getLogger(__name__)
Pair = tuple[Tensor, Tensor]
Weight = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Started:
    """What a layer begins with: the values of its adapter's parameters, float32 on the CPU, and what its base holds.

    `weight`, as adapters see it, is set where the start took something from a base that no quantizer stores, and
    `taken` are the two matrices whose product that is; `quantized` is set where the base is stored so.
    """

    values: Mapping[str, Tensor]
    weight: Tensor | None = None
    quantized: QuantizedWeight | None = None
    taken: Pair | None = None


@dataclass
class Starter:
    """Starts the entries of one plan: each once, whoever has its weight first.

    `observed` is what observers saw, by (kind, path); `taken`, by path, what an earlier start of the same adapter took
    from the base. Without `initialize` the values stay zero, for whoever has others to put there.
    """

    plan: Plan
    plugins: Plugins
    seed: int = 0
    initialize: bool = True
    observed: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    taken: Mapping[str, Pair] = field(default_factory=dict)
    started: dict[str, Started] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._first: dict[str, str] = {}
        for entry in self.plan.entries:
            for one in entry.adapter.parameters if entry.adapter else ():
                if one.shared:
                    self._first.setdefault(one.shared, entry.path)

    def start(self, entry: PlanEntry, weight: Weight | None, *, stores: bool = True) -> Started:
        """Return what an entry begins with; `weight` gives its weight as adapters see it, None for a parameter.

        Without `stores` the weight is quantized already, or stays as it is.
        Raises: PluginError naming the plugin that failed, PlanError for a start that does not fit the entry.
        """
        if entry.path in self.started:
            return self.started[entry.path]
        self.started[entry.path] = started = _Start(self, entry, weight, stores).run()
        return started

    def forget(self, entry: PlanEntry) -> None:
        """Let go of what an entry began with: whoever was to have it has it."""
        self.started.pop(entry.path, None)

    def own(self, entry: PlanEntry) -> dict[str, Tensor]:
        """Return the parameters that this entry is to start, empty: a shared one where its first layer is."""
        table = entry.adapter.parameters if entry.adapter else ()
        return {
            one.name: torch.zeros(one.shape, device="cpu")
            for one in table
            if not one.shared or self._first[one.shared] == entry.path
        }


@dataclass(slots=True)
class _Start:
    """One entry on its way; `base` is what the base will hold before it is stored."""

    starter: Starter
    entry: PlanEntry
    weight: Weight | None
    stores: bool
    original: Tensor | None = None
    base: Tensor | None = None
    quantized: QuantizedWeight | None = None
    taken: Pair | None = None

    def run(self) -> Started:
        values = self.starter.own(self.entry)
        with torch.no_grad():
            if self.entry.adapter is not None and self.starter.initialize:
                self._fill(values)
            elif (pair := self.starter.taken.get(self.entry.path)) is not None:
                change = self._take(*pair)
                say_if_other_base(self.entry.path, self.starter.taken, change, self._original_matrix())
            if self.stores and self.entry.quant is not None:
                self._store()
        # one that is stored is needed as it is stored alone
        return Started(values, None if self.quantized else self.base, self.quantized, self.taken)

    def _fill(self, values: dict[str, Tensor]) -> None:
        entry, plugins = self.entry, self.starter.plugins
        assert entry.adapter is not None
        method = plugins.method(entry.adapter.method)
        generator = module_generator(self.starter.seed, entry.path)
        context = self._context(generator, lambda lora_A, lora_B: self._initialize(lora_A, lora_B, generator))
        try:
            method.start(values, context)
        except LorakitError:
            raise
        except Exception as error:
            raise PluginError(
                f"method `{method.name}` of {plugins.origin(type(method))} failed to start `{entry.path}`: "
                f"{type(error).__name__}: {error}"
            ) from error
        for one in entry.adapter.parameters:
            held = one.dtype or entry.adapter.dtype
            if one.name in values and not _is_finite(values[one.name], dtype_of(held)):
                raise PlanError(
                    f"the start of `{entry.path}` gives `{one.name}` NaN, or values that {held} does not hold: give "
                    "its `init` other options, or the adapter another dtype"
                )

    def _context(self, generator: torch.Generator, initialize: Callable[[Tensor, Tensor], None]) -> StartContext:
        """Return what a plugin may look at and ask for; nothing here holds it, so that weights go when it goes."""
        entry, plugins = self.entry, self.starter.plugins
        assert entry.adapter is not None and entry.shape is not None
        return StartContext(
            path=entry.path,
            shape=entry.shape,
            settings=entry.adapter.settings,
            weight=self._original_matrix,
            stored_weight=self._stored_weight,
            initialize=initialize,
            generator=generator,
            quantizer=plugins.quantizer(entry.quant) if entry.quant else None,
            observed=self.starter.observed.get(("initializer", entry.path)),
        )

    def _initialize(self, lora_A: Tensor, lora_B: Tensor, generator: torch.Generator) -> None:
        entry, plugins = self.entry, self.starter.plugins
        assert entry.adapter is not None
        call = entry.adapter.settings.init
        if call is None:
            raise PlanError(f"method `{entry.adapter.method.name}` asks for an `init`, which it does not take")
        initializer = plugins.initializer(call)
        try:
            initializer.initialize(lora_A, lora_B, self._context(generator, _initialized_already))
        except LorakitError:
            raise
        except Exception as error:
            raise PluginError(
                f"initializer `{call.name}` of {plugins.origin(type(initializer))} failed on `{entry.path}` at rank "
                f"{entry.adapter.settings.rank}: {type(error).__name__}: {error}"
            ) from error
        if entry.shape is not None and entry.shape.padding is not None:
            # its row of the change is zero, and stays so
            lora_A[:, entry.shape.padding] = 0.0
        if getattr(initializer, "changes_base", False):
            dtype = dtype_of(entry.adapter.dtype)
            # as the adapter will hold them, so that nothing is lost between what goes and what comes
            self._take(lora_A.to(dtype), lora_B.to(dtype))

    def _take(self, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        """Take scaling · B·A from the base weight, and return it."""
        assert self.entry.adapter is not None and self.entry.shape is not None
        if not self.stores:
            raise PlanError(
                f"the start of `{self.entry.path}` takes a part from its weight, which is quantized already, or under "
                "another adapter: start from plain weights"
            )
        original = self._original()
        change = self.entry.adapter.settings.factor * (lora_B.float() @ lora_A.float())
        left = self._matrix(original) - change.to(original.device)
        self.base = as_weight(left, self.entry.shape).to(original.dtype)
        self.taken = (lora_A.clone(), lora_B.clone())
        return change

    def _store(self) -> QuantizedWeight:
        if self.quantized is None:
            observed = self.starter.observed.get(("quantizer", self.entry.path))
            base = self._original() if self.base is None else self.base
            self.quantized = quantized_weight(base, self.entry, self.starter.plugins, observed)
        return self.quantized

    def _original_matrix(self) -> Tensor:
        return self._matrix(self._original())

    def _stored_weight(self) -> Tensor:
        if self.stores and self.entry.quant is not None:
            quantizer = self.starter.plugins.quantizer(self.entry.quant)
            return quantizer.dequantize(self._store()).float()
        return self._matrix(self._original() if self.base is None else self.base)

    def _original(self) -> Tensor:
        if self.weight is None:
            assert self.entry.adapter is not None
            what = self.entry.adapter.settings.init or self.entry.adapter.method
            raise PlanError(
                f"`{what.name}` looks at the weight as one matrix, and `{self.entry.path}` is "
                f"{self.entry.shape}: give it another `init`"
            )
        if self.original is None:
            self.original = self.weight()
        return self.original

    def _matrix(self, weight: Tensor) -> Tensor:
        assert self.entry.shape is not None
        return as_matrix(weight, self.entry.shape).float()


def say_if_other_base(path: str, taken: Mapping[str, Pair], change: Tensor, weight: Tensor) -> None:
    """Say where a weight, as a matrix, does not hold what an earlier start took from it; the first that it took tells.

    Without a part of it a weight is smaller, and without anything else it is larger.
    """
    change, weight = change.float().to(weight.device), weight.float()
    if path == next(iter(taken)) and bool((change * weight).sum() < (change * change).sum() / 2):
        logger.warning(
            "`%s` of this base does not hold what the start of its adapter took from it: the adapter was trained on "
            "another base, or this one was changed since", path,
        )  # fmt: skip


def _initialized_already(lora_A: Tensor, lora_B: Tensor) -> None:
    raise ValueError("an initializer fills the matrices itself; `context.initialize` is for methods")


def _is_finite(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether values are finite numbers once they are held in a dtype."""
    held = values if values.dtype == dtype else values.to(dtype)
    # a sum of finite numbers may overflow; one that has not needs no closer look
    return math.isfinite(float(held.sum())) or bool(torch.isfinite(held).all())


def module_generator(seed: int, path: str) -> torch.Generator:
    """Return the generator of one module, seeded by the run's seed and the module's path, whatever else is adapted."""
    digest = hashlib.sha256(f"{seed}:{path}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)
