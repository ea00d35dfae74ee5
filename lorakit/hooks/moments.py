"""The moments of a run: one typed method for every hook, which asks the plugins in turn and checks what they answer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from lorakit.errors import LorakitError, ModelError, PluginError
from lorakit.hooks.protocols import FormerNames

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lorakit.planning.plan import Plan, PlanEntry
    from lorakit.values import LayerShape, ModelReference

Answer = TypeVar("Answer")


class Moments:
    """Every moment at which plugins are called.

    Hooks get the arguments that their function names, and `plugins`, the set that this run goes with. Each method
    raises PluginError naming the plugin, with its version, that raised or answered with something else than its hook
    says; a LorakitError that a plugin raises goes through as it is.
    """

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self._manager = manager

    def load_model(self, reference: ModelReference) -> nn.Module:
        """Return the model that a reference names, loaded for these plugins. Raises: ModelError if none can."""
        model = self._first(
            "lorakit_load_model", _module_type(), reference=replace(reference, plugins=self)  # type: ignore[arg-type]
        )  # fmt: skip
        if model is None:
            raise ModelError(f"nothing here can load the model {reference.text}")
        return model

    def describe_module(self, module: nn.Module) -> LayerShape | None:
        """Return the shape of a layer that an adapter fits, or None."""
        return self._first("lorakit_describe_module", _shape_type(), module=module)

    def describe_parameter(self, module: nn.Module, name: str) -> LayerShape | None:
        """Return the shape of a parameter that an adapter fits by itself, or None."""
        return self._first("lorakit_describe_parameter", _shape_type(), module=module, name=name)

    def former_names(self, model: nn.Module, weights: Collection[str]) -> FormerNames | None:
        """Return what earlier releases of the model's library called its weights, or None where nothing moved."""
        return self._first("lorakit_former_names", FormerNames, model=model, weights=weights)  # type: ignore[type-abstract]

    def plan_ready(self, plan: Plan) -> Plan:
        """Return the plan as the plugins, each in turn, have changed it."""
        from lorakit.planning.plan import Plan

        for impl in reversed(self._implementations("lorakit_plan_ready")):
            plan = self._answer(impl, "lorakit_plan_ready", Plan, self._given(plan=plan)) or plan
        return plan

    def estimate_memory(self, entry: PlanEntry) -> int:
        """Return the bytes that plugins count for an entry beyond what the plan does."""
        total, given = 0, self._given(entry=entry)
        for impl in self._implementations("lorakit_estimate_memory"):
            counted = self._answer(impl, "lorakit_estimate_memory", int, given) or 0
            if counted < 0:
                raise PluginError(f"plugin {impl.plugin_name} counted {counted} bytes in lorakit_estimate_memory")
            total += counted
        return total

    def before_apply(self, model: nn.Module, plan: Plan) -> None:
        """Let plugins bring a model into a form that adapters fit."""
        self._all("lorakit_before_apply", model=model, plan=plan)

    def convert_module(self, module: nn.Module, dtype: torch.dtype) -> nn.Module | None:
        """Return lorakit's own layer for one that another library holds quantized, or None."""
        return self._first("lorakit_convert_module", _module_type(), module=module, dtype=dtype)

    def adapt_module(self, module: nn.Module, entry: PlanEntry, parameters: Any) -> nn.Module | None:
        """Return the adapter that a plugin brings for a layer, or None where the method builds it."""
        return self._first(
            "lorakit_adapt_module", _module_type(), module=module, entry=entry, parameters=parameters
        )  # fmt: skip

    def model_ready(self, model: nn.Module, plan: Plan) -> None:
        """Tell plugins that every adapter is in place."""
        self._all("lorakit_model_ready", model=model, plan=plan)

    def model_merged(self, model: nn.Module) -> None:
        """Tell plugins that every adapter was folded in."""
        self._all("lorakit_model_merged", model=model)

    def before_save(self, model: nn.Module, folder: Path) -> None:
        """Let plugins add files to a folder in the making."""
        self._all("lorakit_before_save", model=model, folder=folder)

    def after_load(self, model: nn.Module, folder: Path) -> None:
        """Tell plugins that an adapter folder has been put on a model."""
        self._all("lorakit_after_load", model=model, folder=folder)

    def _implementations(self, hook: str) -> list[pluggy.HookImpl]:
        """Return the implementations of a hook in the order of asking: the last registered first."""
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        return caller.get_hookimpls()[::-1]

    def _first(self, hook: str, wanted: type[Answer], **arguments: Any) -> Answer | None:
        given = self._given(**arguments)
        for impl in self._implementations(hook):
            if (answer := self._answer(impl, hook, wanted, given)) is not None:
                return answer
        return None

    def _all(self, hook: str, **arguments: Any) -> None:
        given = self._given(**arguments)
        for impl in self._implementations(hook):
            self._answer(impl, hook, type(None), given)

    def _given(self, **arguments: Any) -> dict[str, Any]:
        """Return what an implementation may name among its arguments."""
        return {**arguments, "plugins": self}

    def _answer(self, impl: pluggy.HookImpl, hook: str, wanted: type[Answer], given: dict[str, Any]) -> Answer | None:
        try:
            answer: Any = impl.function(*[given[name] for name in impl.argnames])
        except LorakitError:
            raise
        except Exception as error:
            raise PluginError(f"plugin {impl.plugin_name} failed in {hook}: {type(error).__name__}: {error}") from error
        if answer is None or (isinstance(answer, wanted) and not (wanted is int and isinstance(answer, bool))):
            return answer
        expected = "nothing" if wanted is type(None) else f"a {wanted.__name__} or None"
        raise PluginError(
            f"plugin {impl.plugin_name} answered {hook} with a {type(answer).__name__}; it is to return {expected}"
        )


def _shape_type() -> type[LayerShape]:
    from lorakit.values import LayerShape

    return LayerShape


def _module_type() -> type[nn.Module]:
    from torch import nn

    return nn.Module
