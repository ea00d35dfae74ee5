"""The Plan: what will become of every module of one model, as immutable plain data that goes to JSON and back."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from lorakit.errors import PlanError
from lorakit.language.spec import PluginCall
from lorakit.planning import codec
from lorakit.planning.hardware import DTYPES as DTYPES
from lorakit.planning.hardware import Compute
from lorakit.values import LayerShape

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Bytes:
    """What one entry holds in memory, in bytes: its weights before and after, and what training adds."""

    weight_before: int
    weight_after: int
    adapter: int = 0
    gradient: int = 0
    optimizer: int = 0
    extra: int = 0

    @property
    def during_training(self) -> int:
        return self.weight_after + self.adapter + self.gradient + self.optimizer + self.extra


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """The adapter of one module; `parameters` counts what it adds, `bias_parameters` the base layer's that train."""

    method: PluginCall
    rank: int | None
    alpha: float
    scaling: str
    dropout: float
    init: PluginCall
    dtype: str
    bias: str
    lr: float | None
    lr_ratio: float | None
    paged: bool
    parameters: int
    bias_parameters: int = 0

    def __post_init__(self) -> None:
        # a plan may come from a file that anyone wrote
        for name, value, allowed in (
            ("dtype", self.dtype, DTYPES.values()),
            ("scaling", self.scaling, ("standard", "rslora")),
            ("bias", self.bias, ("none", "adapter")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is one of {', '.join(allowed)}, not {value!r}")
        if (self.rank is not None and self.rank < 1) or not 0 <= self.dropout < 1 or not math.isfinite(self.alpha):
            raise ValueError("rank must be 1 or more, dropout at least 0 and below 1, alpha finite")

    @property
    def factor(self) -> float:
        """What B·A·x is multiplied by: alpha / rank, and alpha / sqrt(rank) for rsLoRA (arXiv:2312.03732)."""
        if self.rank is None:
            return 1.0
        return self.alpha / (math.sqrt(self.rank) if self.scaling == "rslora" else self.rank)


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """What happens to one module. `shape` is None for a layer that only trains; `decided_by` names the rules."""

    path: str
    class_name: str
    shape: LayerShape | None
    dtype: str
    parameters: int
    quant: PluginCall | None
    adapter: AdapterPlan | None
    train: bool
    train_lr: float | None
    decided_by: tuple[str, ...]
    bytes: Bytes

    @property
    def added(self) -> int:
        """Parameters that the entry adds to the model."""
        return self.adapter.parameters if self.adapter else 0

    @property
    def trainable(self) -> int:
        """Parameters of the entry that train."""
        if self.adapter:
            return self.adapter.parameters + self.adapter.bias_parameters
        return self.parameters if self.train else 0


@dataclass(frozen=True, slots=True)
class SelectorCount:
    """How many modules one selector matched, and how many of those no adapter fits."""

    selector: str
    matched: int
    passed_over: int


@dataclass(frozen=True, slots=True)
class RuleSummary:
    """One rule: where it stands, what it says, how many modules it decides, and what its selectors matched."""

    place: str
    keyword: str
    targets: str
    modules: int
    selectors: tuple[SelectorCount, ...]
    containers: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class OptimizerPlan:
    """The optimizer of the run; `lr` is what groups without one of their own take."""

    call: PluginCall
    lr: float
    paged: bool


@dataclass(frozen=True, slots=True)
class Memory:
    """The forecast for one training step in bytes; `activations` is an estimate for batch × tokens."""

    weights_before: int
    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    workspace: int
    batch: int
    tokens: int

    @property
    def peak(self) -> int:
        return self.weights + self.adapters + self.gradients + self.optimizer + self.activations + self.workspace


@dataclass(frozen=True, slots=True)
class Plan:
    """A spec, decided for one model; without `compute` the model is left in the dtypes that it has."""

    model_class: str
    model_parameters: int
    entries: tuple[PlanEntry, ...]
    rules: tuple[RuleSummary, ...]
    optimizer: OptimizerPlan
    memory: Memory
    compute: Compute | None = None
    notes: tuple[str, ...] = ()
    source: str = ""
    version: int = FORMAT_VERSION

    @property
    def added(self) -> int:
        """Parameters that the plan adds."""
        return sum(entry.added for entry in self.entries)

    @property
    def trainable(self) -> int:
        """Parameters that train: what is added, and what `train` keeps trainable."""
        return sum(entry.trainable for entry in self.entries)

    @property
    def trainable_share(self) -> float:
        """Trainable parameters over those of the unadapted model."""
        return self.trainable / self.model_parameters if self.model_parameters else 0.0

    def entry(self, path: str) -> PlanEntry | None:
        """Return the entry of a module, if there is one."""
        return next((entry for entry in self.entries if entry.path == path), None)

    def _repr_html_(self) -> str:
        """Return the plan as notebooks show it."""
        from lorakit.planning.html import plan_html

        return plan_html(self)

    def to_json(self) -> str:
        """Return the plan as JSON text."""
        return json.dumps(codec.to_plain(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Return the plan that `to_json` wrote.

        Raises: PlanError if the text is no plan, has an unknown field, or is of a newer version.
        """
        try:
            plain: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(f"this is no plan: {error}") from error
        if not isinstance(plain, dict):
            raise PlanError("this is no plan: a plan is a JSON object")
        if plain.get("version") != FORMAT_VERSION:
            raise PlanError(f"this plan is of version {plain.get('version')}; this lorakit reads {FORMAT_VERSION}")
        try:
            plan: Plan = codec.from_plain(cls, plain)
        except (TypeError, ValueError) as error:
            raise PlanError(f"this is no plan: {error}") from error
        return plan
