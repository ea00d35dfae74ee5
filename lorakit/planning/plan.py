"""The Plan: what will become of every module of one model, as immutable plain data that goes to JSON and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lorakit.dtypes import LONG
from lorakit.errors import PlanError
from lorakit.language.statements import PluginCall
from lorakit.language.words import CLAUSES
from lorakit.planning import codec
from lorakit.planning.hardware import Compute
from lorakit.planning.migration import migrated
from lorakit.quoting import shown
from lorakit.values import LayerShape

FORMAT_VERSION = 4
# more than any layer has rows, and what float32 holds
LARGEST_RANK, LARGEST_ALPHA = 2**31, 3e38


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
class Settings:
    """The clauses of `adapt` that are settings of its method; None is one that the method does not take.

    `scaling` is `standard` or `rslora`; `lr_ratio` is the learning rate of B over that of A.
    """

    rank: int | None = None
    alpha: float | None = None
    scaling: str | None = None
    dropout: float | None = None
    init: PluginCall | None = None
    lr_ratio: float | None = None

    def __post_init__(self) -> None:
        # a plan may come from a file that anyone wrote
        _one_of("scaling", self.scaling, (None, *CLAUSES["scaling"].choices))
        if self.rank is not None and not 1 <= self.rank <= LARGEST_RANK:
            raise ValueError(f"rank must be 1 or more, and at most {LARGEST_RANK:,}, not {shown(self.rank)}")
        if self.alpha is not None and not abs(self.alpha) < LARGEST_ALPHA:
            raise ValueError(f"alpha must be a number below {LARGEST_ALPHA:g}, not {shown(self.alpha)}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout}")
        if self.lr_ratio is not None and not 0 < self.lr_ratio < math.inf:
            raise ValueError("lr_ratio must be above 0 and finite")

    @property
    def factor(self) -> float:
        """What B·A·x is multiplied by: alpha / rank, and alpha / sqrt(rank) for rsLoRA (arXiv:2312.03732)."""
        if self.rank is None or self.alpha is None:
            return 1.0
        return self.alpha / (math.sqrt(self.rank) if self.scaling == "rslora" else self.rank)


@dataclass(frozen=True, slots=True)
class ParameterPlan:
    """One parameter that a method adds to a layer.

    `name` is the adapter's attribute. Layers that name the same `shared` tensor hold one together, which is as large as
    the largest of them asks for in each dimension. `rate` multiplies the rule's learning rate. `file_name` is what
    adapter files call it, behind the layer's path, or alone if it is shared; its own name unless given. `dtype` is what
    it is held in, the adapter's unless given: around 1, steps are too small for 16 bits.
    """

    name: str
    shape: tuple[int, ...]
    trains: bool = True
    shared: str = ""
    rate: float = 1.0
    file_name: str = ""
    dtype: str = ""

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, ("", *LONG.values()))
        if not self.file_name:
            object.__setattr__(self, "file_name", self.name)
        if any(size < 0 for size in self.shape) or not 0 < self.rate < math.inf:
            raise ValueError(f"`{self.name}` has the shape {self.shape} and the rate {self.rate}")

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """The adapter of one module: its method with the settings, and the table of the parameters that it adds.

    `bias_parameters` counts those of the base layer that train with it.
    """

    method: PluginCall
    settings: Settings
    parameters: tuple[ParameterPlan, ...]
    dtype: str
    bias: str = "none"
    lr: float | None = None
    paged: bool = False
    bias_parameters: int = 0

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, tuple(LONG.values()))
        _one_of("bias", self.bias, CLAUSES["bias"].choices)

    @property
    def own(self) -> tuple[ParameterPlan, ...]:
        """The parameters that no other layer shares."""
        return tuple(parameter for parameter in self.parameters if not parameter.shared)


def _one_of(name: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is one of {', '.join(filter(None, allowed))}, not {value!r}")


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """What happens to one module. `shape` is None for a layer that only trains; `decided_by` names the rules.

    With `carried` the adapter's folder holds the module's own parameters too, which are frozen and not the base's.
    """

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
    carried: bool = False

    @property
    def is_parameter(self) -> bool:
        """Whether the entry decides a parameter of a module, and not a module."""
        return self.shape is not None and self.shape.is_parameter

    @property
    def is_whole(self) -> bool:
        """Whether the adapter's folder holds all of the module's own parameters."""
        return self.train or self.carried

    @property
    def keywords(self) -> tuple[str, ...]:
        """The keywords of the rules that it follows."""
        if self.adapter:
            return ("adapt", "train") if self.train else ("adapt",)
        return ("quantize",) * bool(self.quant) + ("train",) * self.train

    @property
    def added(self) -> int:
        """Parameters that the entry alone adds to the model; what layers share is the plan's."""
        return sum(parameter.numel for parameter in self.adapter.own) if self.adapter else 0

    @property
    def trainable(self) -> int:
        """Parameters of the entry alone that train."""
        if self.adapter:
            trained = sum(parameter.numel for parameter in self.adapter.own if parameter.trains)
            return trained + self.adapter.bias_parameters
        return self.parameters if self.train else 0


@dataclass(frozen=True, slots=True)
class SelectorCount:
    """How many modules one selector matched, and how many of those no adapter fits."""

    selector: str
    matched: int
    passed_over: int


@dataclass(frozen=True, slots=True)
class RuleSummary:
    """One rule: where it stands, what it says, how many modules it decides, and what its selectors matched.

    `quant` is what `quantize` says behind its targets, perhaps `none`. A rule that is `reached` stands nowhere: it is
    how far the `quant` of the rule at its place goes.
    """

    place: str
    keyword: str
    targets: str
    modules: int
    selectors: tuple[SelectorCount, ...]
    containers: tuple[tuple[str, int], ...]
    quant: str = ""
    reached: bool = False

    def decides(self, entry: PlanEntry) -> bool:
        """Return whether an entry follows this rule; rules of one keyword on one line cannot be told apart."""
        return self.place in entry.decided_by and self.keyword in entry.keywords


@dataclass(frozen=True, slots=True)
class OptimizerPlan:
    """The optimizer of the run; `lr` is what groups without one of their own take."""

    call: PluginCall
    lr: float
    paged: bool


@dataclass(frozen=True, slots=True)
class Memory:
    """The forecast for one training step in bytes; `activations` is an estimate for batch × tokens, each learned.

    Logits come by chunks of rows, as in `lorakit train`, `Step` and a trainer under `survive`; another trainer holds
    those of all rows. `lorakit train` asks for what is learned alone, and takes less where that is little. On a CPU it
    computes attention record by record, of which more is kept: a quarter of `activations`, where all is learned from
    short ones.

    The blocks of `recomputed`, of `blocks` in all, are computed again from their inputs in the backward pass (gradient
    checkpointing): all with `recompute`, else as many as it takes to hold no more than `limit` bytes, if it is set. Of
    `optimizer`, `paged` bytes move to CPU memory when the accelerator's runs short. A model that reads no tokens sees
    as many rows of its inputs; `of_tokens` is False then.

    Of several `devices`, over which `lorakit.shard` spreads the model with `frozen` weights sharded or replicated, it
    is what each holds, `weights_before` aside: `gathered` are parts of others, for the time in which they are needed.
    """

    weights_before: int
    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    workspace: int
    batch: int
    tokens: int
    recompute: bool = False
    of_tokens: bool = True
    paged: int = 0
    limit: int = 0
    recomputed: tuple[str, ...] = ()
    blocks: int = 0
    devices: int = field(default=1, metadata=codec.UNLESS_DEFAULT)
    frozen: str = field(default="shard", metadata=codec.UNLESS_DEFAULT)
    gathered: int = field(default=0, metadata=codec.UNLESS_DEFAULT)

    def __post_init__(self) -> None:
        _one_of("frozen", self.frozen, ("shard", "replicate"))
        if self.devices < 1:
            raise ValueError(f"a step runs on 1 device or more, not {self.devices}")

    @classmethod
    def of_step(cls, batch: int, tokens: int, recompute: bool, **said: Any) -> Memory:
        """Return the forecast of a step before anything is counted; `said` is what has a default."""
        return cls(0, 0, 0, 0, 0, 0, 0, batch, tokens, recompute, **said)

    @property
    def peak(self) -> int:
        held = self.weights + self.adapters + self.gradients + self.optimizer
        return held + self.activations + self.workspace + self.gathered


@dataclass(frozen=True, slots=True)
class Plan:
    """A spec, decided for one model; `groups` are the Linear-like layers, by path, that read one tensor each.

    Without `compute` the model is left in the dtypes that it has.
    """

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
    groups: tuple[tuple[str, ...], ...] = ()

    @property
    def added(self) -> int:
        """Parameters that the plan adds."""
        return sum(entry.added for entry in self.entries) + sum(one.numel for one in self.shared.values())

    @property
    def shared(self) -> Mapping[str, ParameterPlan]:
        """The tensors that layers share, by name."""
        every = (one for entry in self.entries if entry.adapter for one in entry.adapter.parameters if one.shared)
        return {one.shared: one for one in every}

    @property
    def trainable(self) -> int:
        """Parameters that train: what is added, and what `train` keeps trainable."""
        shared = sum(one.numel for one in self.shared.values() if one.trains)
        return sum(entry.trainable for entry in self.entries) + shared

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
        """Return the plan that `to_json` wrote, of this version or an earlier one.

        Raises: PlanError if the text is no plan, has an unknown field, or is of a newer version.
        """
        try:
            plain: Any = json.loads(text)
            if not isinstance(plain, dict):
                raise PlanError("this is no plan: a plan is a JSON object")
            plan: Plan = codec.from_plain(cls, migrated(plain, FORMAT_VERSION))
        # numbers of thousands of digits are a ValueError, as is all that is no JSON
        except (TypeError, ValueError, RecursionError) as error:
            raise PlanError(f"this is no plan: {error}") from error
        check_once(plan)
        return plan


def check_once(plan: Plan) -> None:
    """Raise PlanError if a plan decides a module twice: both entries would take its place, and one be lost."""
    seen: set[str] = set()
    for entry in plan.entries:
        if entry.path in seen:
            raise PlanError(f"this is no plan: it decides `{entry.path}` twice")
        seen.add(entry.path)
