"""PEFT's view of an adapted model, and a spec where PEFT takes a config: for all that asks `isinstance(…, PeftModel)`.

PEFT is needed by none of lorakit's other parts: it is imported when one of these two is called.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

    from lorakit.hooks.manager import Plugins
    from lorakit.language.spec import Spec
    from lorakit.planning.hardware import Hardware
    from lorakit.planning.plan import Plan
    from lorakit.trainers.peft_config import SpecConfig
    from lorakit.trainers.peft_view import PeftView


def peft(model: nn.Module) -> PeftView:
    """Return a `peft.PeftModel` around a model that lorakit adapted, for TRL and whatever else knows adapters by that.

    It holds the model itself: what one of them does, the other shows. A trainer then takes the adapters off where it
    wants a reference, or an adapter as it stood, instead of loading a second model.
    Raises: ModelError if the model has no adapters, or PEFT is not installed.
    """
    view: type[PeftView] = _view().PeftView
    return view.around(model)


def peft_config(
    spec_or_plan: Spec | Plan | str | Path,
    *,
    seed: int = 0,
    calibration: Iterable[Any] | None = None,
    hardware: Hardware | None = None,
    plugins: Plugins | None = None,
) -> SpecConfig:
    """Return a `peft.PeftConfig` that stands for a spec, for a trainer's `peft_config` and for `peft.get_peft_model`.

    The model is adapted in place as `lorakit.apply` does it with the same arguments, base and all, once the trainer
    has loaded it.
    Raises: SpecError, ModelError if PEFT is not installed.
    """
    from lorakit.api import parse

    config: type[SpecConfig] = _view().SpecConfig
    spec = parse(spec_or_plan, plugins=plugins) if isinstance(spec_or_plan, str | Path) else spec_or_plan
    return config(spec=spec, seed=seed, calibration=calibration, hardware=hardware, plugins=plugins)


def _view() -> Any:
    try:
        import_module("peft")
    except ImportError as error:
        raise ModelError(f"this needs PEFT, which does not import here ({error}): pip install peft") from error
    # which tells PEFT of both
    return import_module("lorakit.trainers.peft_view")
