"""Plain values that every floor speaks of: a layer seen from outside, a quantized weight, a named model.

Nothing here imports torch or any other part of lorakit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lorakit.application.starting import Starter
    from lorakit.hooks.manager import Plugins
    from lorakit.hooks.protocols import Quantizer
    from lorakit.planning.plan import Plan


_PART = r"\w(?:[\w.-]*\w)?"
# what the hub takes for the name of a model, OWNER/NAME; a name without owner has no dot, or it is a file's
HUB_ID = re.compile(rf"(?=.{{1,96}}\Z)(?!.*(?:--|\.\.))(?!.*\.git\Z)(?:{_PART}/{_PART}|\w(?:[\w-]*\w)?)")


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A quantized matrix as plain tensors, named by its quantizer.

    Shapes: stands for a weight (out_features, in_features) = `shape`. `dtype` is what dequantizing gives back.
    """

    tensors: Mapping[str, Tensor]
    shape: tuple[int, int]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Storage:
    """How and where a layer holds its quantized weight (out_features, in_features) = `shape`: what chooses its kernel.

    `dtype` is what dequantizing gives.
    """

    quantizer: Quantizer
    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device


class LowRank(NamedTuple):
    """What an adapter adds to a product: scaling · B · A · dropout(x).

    Shapes: A (rank, in_features); B (out_features, rank); `scaling` a number, or a tensor (rows, 1, …) with one for
    every row of the batch, of as many dimensions as x. `dropout` is 0 outside of training.
    """

    A: Tensor
    B: Tensor
    scaling: float | Tensor
    dropout: float


@dataclass(frozen=True, slots=True)
class Renamed:
    """The weight of today that a former name stands for.

    `pattern` is what the former name fits where several weights became one, or one several, and `index` its place among
    modules that lay one by one.
    """

    name: str
    pattern: str | None = None
    index: int = 0


@dataclass(frozen=True, slots=True)
class LowRankPart:
    """The change B·A of one former weight, A (rank, inputs) and B (outputs, rank), and the weight of today."""

    renamed: Renamed
    lora_A: Tensor
    lora_B: Tensor


@dataclass(frozen=True, slots=True)
class LayerShape:
    """How an adaptable layer looks from outside.

    A kind that begins with `linear` computes y (..., out_features) = x (..., in_features) Wᵀ + b and can be quantized.
    A kind that begins with `stack` is a parameter of `stack` such matrices in one, named by its own path. `kernel` is
    the size of a convolution's. `called` is False where the parent computes with the layer's weight, always or on some
    devices, and does not call the layer itself; where the parent's code shows it, lorakit sees it by itself. `refusal`
    says why this one layer of a known kind cannot be adapted. With `outright` a target has to name it: roles, globs and
    other patterns look past it. `padding` is the row of a lookup that stands for no token, and stays as it is.
    `quantizer` is the one that holds the weight already; a plan does not keep it.
    """

    kind: str
    in_features: int
    out_features: int
    kernel: tuple[int, ...] = ()
    stack: int = 0
    called: bool = True
    refusal: str = ""
    quantizer: Quantizer | None = field(default=None, compare=False, repr=False, metadata={"written": False})
    outright: bool = False
    padding: int | None = None

    @property
    def is_linear(self) -> bool:
        return self.kind.startswith("linear")

    @property
    def is_parameter(self) -> bool:
        return self.stack > 0

    @property
    def inputs(self) -> int:
        """The columns of the weight as a matrix: in_features, times the size of a kernel."""
        return self.in_features * math.prod(self.kernel)

    @property
    def fan_in(self) -> int:
        """How many inputs add up in one entry of A·x; a lookup picks a single one."""
        return 1 if self.kind == "embedding" else self.inputs

    @property
    def is_flipped(self) -> bool:
        """Whether the adapter's B is the matrix that sees the inputs, because files take the weight the other way."""
        return self.kind.endswith("_flipped")

    @property
    def largest_rank(self) -> int:
        """The largest rank that a change of the weight can have."""
        return min(self.out_features, self.inputs)

    def __str__(self) -> str:
        matrix = " × ".join(map(str, (self.out_features, self.in_features, *self.kernel)))
        return f"{self.stack} of {matrix}" if self.stack else matrix


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model named in text or by a config object, and what loading it may do.

    `with_weights=False` asks for the structure alone, on meta tensors. With a `plan`, a loader may store each weight as
    the plan quantizes it while it reads, as a `QuantizedLinear` in the layer's place; the rest is quantized afterwards.
    Modules that `fresh` names, by path or by how it ends, may be without weights in the files: what trains there starts
    anew, drawn by the starter's seed. It quantizes on `device`, or where the weights lie; `plugins` are those that the
    plan was made with, or the default ones. `starter` starts the plan's adapters while their weights are at hand;
    `progress` is told the bytes read and the bytes in all.
    """

    text: str
    config: object | None = None
    with_weights: bool = True
    trust_remote_code: bool = False
    allow_pickle: bool = False
    dtype: str | None = None
    plan: Plan | None = None
    fresh: tuple[str, ...] = ()
    device: str | None = None
    plugins: Plugins | None = field(default=None, compare=False, repr=False)
    starter: Starter | None = field(default=None, compare=False, repr=False)
    progress: Callable[[int, int], None] | None = field(default=None, compare=False, repr=False)

    @property
    def is_factory(self) -> bool:
        """Whether the text names code, `FILE.py:FACTORY`, and no stored weights."""
        return self.config is None and ":" in self.text
