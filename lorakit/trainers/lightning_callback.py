"""Lightning: a callback that adapts a module's model before it trains, and has checkpoints hold the adapter alone."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lorakit import api
from lorakit.application.state import adapted_in, adapter_of, state_of
from lorakit.artifacts.resuming import first_difference
from lorakit.errors import ModelError
from lorakit.pipeline import decide
from lorakit.plugins import default_plugins
from lorakit.trainers.state_dicts import give_adapters

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer

    from lorakit.hooks.manager import Plugins
    from lorakit.language.spec import Spec
    from lorakit.planning.plan import Plan

# the two names under which Lightning is installed
PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _callback() -> Any:
    """Return the base class of callbacks: of what is imported already, or else of what is installed."""
    for name in sorted(PACKAGES, key=lambda name: name not in sys.modules):
        try:
            return import_module(name).Callback
        except ImportError as error:
            reason = error
    raise ModelError(f"this needs Lightning, which does not import here ({reason}): pip install lightning")


if not TYPE_CHECKING:
    Callback = _callback()


class LightningCallback(Callback):  # type: ignore[misc]
    """What `lorakit.lightning_callback` returns."""

    def __init__(
        self, spec_or_plan: Spec | Plan | str | Path | None, *, path: str | None, plugins: Plugins | None, **given: Any
    ) -> None:
        self._plugins = plugins or default_plugins()
        if isinstance(spec_or_plan, str | Path):
            # what is wrong with it is said now
            spec_or_plan = api.parse(spec_or_plan, plugins=self._plugins)
        self._spec = spec_or_plan
        self._path = path
        self._given = given

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Adapt the module's model, unless it is, and have the module's state be its adapters from then on.

        Raises: ModelError where no one model is to be adapted, or it is adapted as the spec does not say.
        """
        if self._spec is not None:
            adapted = adapted_in(pl_module)
            if not adapted:
                model = api.apply(self._spec, self._model(pl_module), plugins=self._plugins, **self._given)
                # Lightning trains each module in the mode that it finds it in: transformers loads for evaluation
                model.train(stage == "fit")
            for model in adapted.values():
                self._check_same(model)
        give_adapters(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise ModelError where nothing was adapted: by now a module has made its model."""
        if not adapted_in(pl_module):
            raise ModelError(
                f"this {type(pl_module).__name__} has no adapters: give the callback a spec, or adapt its model by "
                "`lorakit.apply` in `__init__` or `configure_model`"
            )

    def _model(self, module: nn.Module) -> nn.Module:
        if self._path is not None:
            try:
                return module.get_submodule(self._path)
            except AttributeError as error:
                raise ModelError(f"this {type(module).__name__} has no `{self._path}` to adapt: {error}") from error
        models = {name: one for name, one in module.named_children() if next(one.parameters(), None) is not None}
        if len(models) == 1:
            return next(iter(models.values()))
        if not models:
            raise ModelError(
                f"this {type(module).__name__} has no model to adapt yet: make it in `__init__`, or adapt it by "
                "`lorakit.apply` where it is made, and give the callback no spec"
            )
        raise ModelError(
            f"this {type(module).__name__} has several modules with parameters, `{'`, `'.join(models)}`: say which to "
            "adapt, as `path='model'`; `path=''` is all of it"
        )

    def _check_same(self, model: nn.Module) -> None:
        """Raise ModelError if a model is adapted already as the spec does not say."""
        assert self._spec is not None
        asked = decide(
            self._spec, model, self._plugins, hardware=self._given["hardware"], inventory=state_of(model).inventory
        )
        if different := first_difference(asked, adapter_of(model).plan):
            raise ModelError(
                f"this {type(model).__name__} is adapted already, and not as the callback's spec says: {different}; "
                "give the callback no spec to train it as it is"
            )
