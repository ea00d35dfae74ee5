"""Lightning's callback of lorakit's, made when it is asked for: Lightning is needed by none of the other parts."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.hooks.manager import Plugins
    from lorakit.language.spec import Spec
    from lorakit.planning.hardware import Hardware
    from lorakit.planning.plan import Plan
    from lorakit.trainers.lightning_callback import LightningCallback


def lightning_callback(
    spec_or_plan: Spec | Plan | str | Path | None = None,
    *,
    path: str | None = None,
    seed: int = 0,
    calibration: Iterable[Any] | None = None,
    hardware: Hardware | None = None,
    plugins: Plugins | None = None,
) -> LightningCallback:
    """Return a callback for Lightning's Trainer: it adapts a module's model, and has checkpoints hold the adapter.

    Without a spec the module brings an adapted model. With one, `path` names the model in the module where more than
    one of its attributes has parameters; it is adapted before `configure_optimizers`, where `lorakit.optimizer(self)`
    is the spec's optimizer, by `lorakit.apply` with the other arguments. A checkpoint holds the adapters with their
    plans, what trains beside them, and all of the module that is not in an adapted model. One of another plan is
    refused with an AdapterError that names the first difference, and one of a whole model is taken.
    Raises: SpecError, ModelError if Lightning is not installed.
    """
    made: type[LightningCallback] = import_module("lorakit.trainers.lightning_callback").LightningCallback
    return made(spec_or_plan, path=path, seed=seed, calibration=calibration, hardware=hardware, plugins=plugins)
