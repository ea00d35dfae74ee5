"""A spec, or a plan, where PEFT takes a config."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from peft import PeftConfig
from torch import nn

from lorakit.api import apply
from lorakit.hooks.manager import Plugins
from lorakit.language.spec import Spec
from lorakit.planning.hardware import Hardware
from lorakit.planning.plan import Plan

# PEFT finds what serves a config by these words
TYPE = "LORAKIT"


@dataclass
class SpecConfig(PeftConfig):
    """What `lorakit.apply` is given beside a model; `is_applied` where the model came with it."""

    spec: Spec | Plan | None = None
    seed: int = 0
    calibration: Iterable[Any] | None = None
    hardware: Hardware | None = None
    plugins: Plugins | None = None
    is_applied: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = self.task_type = TYPE

    def apply(self, model: nn.Module, name: str) -> None:
        """Adapt a model in place under a name. Raises: what `lorakit.apply` raises."""
        assert self.spec is not None
        apply(
            self.spec, model, self.seed, name=name,
            calibration=self.calibration, hardware=self.hardware, plugins=self.plugins,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return what a log shows of it."""
        spec = self.spec.to_json() if isinstance(self.spec, Plan) else getattr(self.spec, "source", None)
        return {
            "peft_type": TYPE,
            "spec": spec,
            "seed": self.seed,
            "base_model_name_or_path": self.base_model_name_or_path,
        }
