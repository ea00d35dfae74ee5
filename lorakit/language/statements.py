"""What statements mean, and what they are made of, as immutable plain data.

Two are equal when they mean the same; where their words stood does not count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TypeAlias

from lorakit.diagnostics import Span
from lorakit.language.amounts import UNITS

Value: TypeAlias = "bool | int | float | str | tuple[Value, ...]"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What somebody wrote, and where, unless nobody did: places are no part of what is written to files."""

    span: Span | None = field(default=None, compare=False, repr=False, metadata={"written": False})


@dataclass(frozen=True, slots=True)
class IndexRange(_Written):
    """Indices from `first` to `last`, both inclusive; negative ones count from the end of the container."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}..{self.last}"


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of a path: a name with `*` for any part of it, `**` for any number of segments, and index ranges."""

    name: str
    indices: tuple[IndexRange, ...] = ()

    def __str__(self) -> str:
        return self.name + (f"[{','.join(map(str, self.indices))}]" if self.indices else "")


@dataclass(frozen=True, slots=True)
class Target(_Written):
    """A selector of modules: a path of segments, which may end in a role or a class, or a regex on the whole path."""

    segments: tuple[Segment, ...] = ()
    role: str | None = None
    class_name: str | None = None
    regex: str | None = None

    def __post_init__(self) -> None:
        # a slash means the same with a backslash before it and without
        if self.regex is not None and r"\/" in self.regex:
            object.__setattr__(
                self, "regex", re.sub(r"\\(.)", lambda m: "/" if m[1] == "/" else m[0], self.regex, flags=re.S)
            )

    @property
    def is_outright(self) -> bool:
        """Whether it names modules outright: a plain path, without glob, range, class, regex or role."""
        is_path = self.regex is None and self.role is None and self.class_name is None
        return is_path and all("*" not in segment.name and not segment.indices for segment in self.segments)

    def __str__(self) -> str:
        if self.regex is not None:
            return "/" + self.regex.replace("/", r"\/") + "/"
        words = [str(segment) for segment in self.segments]
        if self.role is not None:
            words.append(f"@{self.role}")
        if self.class_name is not None:
            words.append(f":{self.class_name}")
        return ".".join(words)


@dataclass(frozen=True, slots=True)
class PluginCall(_Written):
    """A plugin by name with the options that the text gives it; `double` only where the place allows it."""

    name: str
    options: tuple[tuple[str, Value], ...] = ()
    double: bool = False

    def __post_init__(self) -> None:
        # options mean the same in any order
        object.__setattr__(self, "options", tuple(sorted(self.options, key=lambda option: option[0])))


@dataclass(frozen=True, slots=True)
class Adapt(_Written):
    """`adapt TARGETS clause…`: attach an adapter to every module that the targets select."""

    targets: tuple[Target, ...]
    rank: int | None = None
    alpha: float | None = None
    scaling: str = "standard"
    dropout: float = 0.0
    method: PluginCall = PluginCall("lora")
    init: PluginCall = PluginCall("gaussian")
    quant: PluginCall | None = None
    dtype: str | None = None
    bias: str = "none"
    lr: float | None = None
    lr_ratio: float | None = None
    paged: bool = False
    layers: tuple[IndexRange, ...] = ()
    excepts: tuple[Target, ...] = ()
    optional: bool = False
    rank_span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Quantize(_Written):
    """`quantize TARGETS NAME`: quantize frozen modules without adapting them.

    Without `quant` (`none`) they stay as they are.
    """

    targets: tuple[Target, ...]
    quant: PluginCall | None = None
    layers: tuple[IndexRange, ...] = ()
    excepts: tuple[Target, ...] = ()
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Train(_Written):
    """`train TARGETS`: keep the parameters of these modules trainable in full."""

    targets: tuple[Target, ...]
    lr: float | None = None
    layers: tuple[IndexRange, ...] = ()
    excepts: tuple[Target, ...] = ()
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Optimizer(_Written):
    """`optimizer NAME`: the optimizer that `lorakit.optimizer` builds."""

    call: PluginCall
    lr: float | None = None
    paged: bool = False


@dataclass(frozen=True, slots=True)
class Number:
    """A number with its unit, which is empty, `%`, or one of bytes."""

    value: int | float
    unit: str = ""

    @property
    def bytes(self) -> int:
        """What it comes to, where it counts bytes."""
        return int(self.value * UNITS[self.unit])


@dataclass(frozen=True, slots=True)
class Step(_Written):
    """`step`: how one training step runs; None is what nobody said.

    `batch` counts rows on one device, `tokens` those of the longest row; `compute` is `bf16`, `fp16`, `fp32` or `fp8`.
    `memory` is the most that a device may hold. With `capture` forward and backward run as one graph.
    """

    batch: int | None = None
    tokens: int | None = None
    compute: str | None = None
    capture: bool = False
    memory: Number | None = None

    @property
    def limit(self) -> int | None:
        """The most that a device may hold, in bytes."""
        return None if self.memory is None else self.memory.bytes


@dataclass(frozen=True, slots=True)
class Quantity(_Written):
    """A figure that only the plan knows, by name: `trainable`, `peak_memory` or a plugin's."""

    name: str


@dataclass(frozen=True, slots=True)
class Operation:
    """`left operator right`; a unary minus is `0 - right`."""

    operator: str
    left: Expression
    right: Expression


Expression: TypeAlias = "Number | Quantity | Operation"


@dataclass(frozen=True, slots=True)
class Require(_Written):
    """`require EXPR CMP EXPR`: a promise that the plan must keep."""

    left: Expression
    comparison: str
    right: Expression


Rule: TypeAlias = "Adapt | Quantize | Train"
