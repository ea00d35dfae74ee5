"""What a plugin's objects look like: one protocol a kind.

A plugin object is a frozen dataclass *class*: its fields are its options, with types and defaults, and an instance is
one configured quantizer, initializer, optimizer or method. `name` is a class variable; the docstring's first line says
what it is; `__post_init__` may raise ValueError, which becomes an error at the option's place in the spec. A field's
metadata may hold `help`, a sentence, `unit`, "%" or "B", for an option that may be written with that unit, and
`example`, a value to test an option with that has no default. `lorakit.testing` checks all that is said here.
Nothing here imports torch, and a plugin should import it only inside its methods, so that `lorakit check` stays quick.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from lorakit.hooks.manager import Plugins
    from lorakit.planning.inventory import Inventory
    from lorakit.planning.plan import Plan, PlanEntry


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A quantized matrix as plain tensors, named by its quantizer.

    Shapes: stands for a weight (out_features, in_features) = `shape`. `dtype` is what dequantizing gives back.
    """

    tensors: Mapping[str, Tensor]
    shape: tuple[int, int]
    dtype: torch.dtype


class Quantizer(Protocol):
    """Stores a frozen weight in fewer bits. A field `double: bool` says that double quantization is supported.

    The same weight gives the same bits. Any size is stored: odd ones, one weight, no rows. A weight with NaN or
    infinity is refused with a ValueError that says `not finite` (`lorakit.hooks.require_finite` raises it), or just
    those values come back not finite; what they share a block with is never lost in silence.

    A class that names this one as its base inherits `linear`; `lorakit.hooks.packing` packs codes of a few bits.
    """

    name: ClassVar[str]

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        """Return weight (out_features, in_features) quantized, on the weight's device."""

    def dequantize(self, quantized: QuantizedWeight) -> Tensor:
        """Return the weight (out_features, in_features) in `quantized.dtype`."""

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Return the bits that one weight of a matrix of this shape takes, scales included."""

    def linear(self, x: Tensor, quantized: QuantizedWeight, bias: Tensor | None) -> Tensor:
        """Return x (..., in_features) times the transposed weight plus bias; differentiable in x.

        This one dequantizes for each product, and autograd keeps the quantized weight alone.
        """
        from lorakit.adapters.kernels.dequantized import dequantized_linear

        return dequantized_linear(x, quantized, bias, self.dequantize)


@runtime_checkable
class CalibratedQuantizer(Quantizer, Protocol):
    """A quantizer that sees what goes into a layer before it quantizes the layer's weight.

    The model runs over the calibration data once, before anything is quantized; whoever gives none gets a PlanError.
    """

    def observe(self, x: Tensor, seen: Any) -> Any:
        """Return what is known of a layer's inputs after a batch x (..., in_features); `seen` is None before the first.

        It is kept for every layer at once until the layer is quantized: sums, not samples.
        """

    def quantize_observed(self, weight: Tensor, seen: Any) -> QuantizedWeight:
        """Return weight (out_features, in_features) quantized for the inputs that were seen.

        Where nothing reached the layer, `quantize` does it without any knowledge of the inputs.
        """


@runtime_checkable
class Checkpointed(Quantizer, Protocol):
    """A quantizer whose layers transformers stores and reads by itself, so that a saved base needs no lorakit.

    Without this, a base is saved with the quantizer's tensors by name, and lorakit alone reads it.
    """

    def checkpoint_tensors(self, quantized: QuantizedWeight) -> Mapping[str, Tensor]:
        """Return what a checkpoint holds of one layer, by the names behind its path, such as `weight.absmax`."""

    def checkpoint_config(self, unquantized: Sequence[str], dtype: torch.dtype) -> Mapping[str, Any]:
        """Return the `quantization_config` of config.json for a model of this dtype.

        Every Linear but those at the paths `unquantized` is stored by this quantizer.
        Raises: ValueError with the reason if transformers cannot read what this quantizer's options give.
        """


@dataclass(frozen=True, slots=True)
class InitContext:
    """What an initializer may look at beside the two matrices.

    `weight` returns the base weight as (outputs, inputs), dequantized if it is quantized; `generator` is seeded from
    the run's seed and the module's path and lives on the CPU; `scaling` is alpha / rank (rsLoRA: / sqrt(rank)).
    `fan_in` counts the inputs that add up in an entry of A·x: in_features, times the kernel's size; 1 for a lookup.
    """

    weight: Callable[[], Tensor]
    generator: torch.Generator
    scaling: float
    fan_in: int


class Initializer(Protocol):
    """Sets the start values of an adapter.

    A fresh adapter changes nothing: B·A is 0, while A and B are not both. A class variable `changes_start = True` says
    that this one's does, such as one that starts from what quantizing lost. Every random number comes from the
    context's generator, so that the same run gives the same bits.
    """

    name: ClassVar[str]

    def initialize(self, lora_A: Tensor, lora_B: Tensor, context: InitContext) -> None:
        """Fill lora_A (rank, inputs) and lora_B (outputs, rank), float32 on the CPU, in place.

        Inputs are in_features, in_channels · kernel or num_embeddings, outputs the base layer's.
        """


class OptimizerFactory(Protocol):
    """Builds an optimizer from parameter groups.

    An optimizer that steps one set of weights and means another to be used has methods `train` and `eval` that switch
    between them: trainers call them around steps, and before weights are measured or saved. `constant_lr = True` on the
    class asks trainers to leave the learning rate as it is after the warm-up.
    """

    name: ClassVar[str]
    default_lr: ClassVar[float]

    def build(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer; each group has `params`, `lr` and `paged`."""

    def state_bytes(self, parameters: int, bytes_per_parameter: int) -> int:
        """Return the bytes of optimizer state for one tensor of so many parameters of that width.

        Where the tensor's shape decides, the bytes that a vector takes: the most.
        """


class Method(Protocol):
    """A way to parametrize the change of a layer; `lora` is one."""

    name: ClassVar[str]
    needs_rank: ClassVar[bool]

    def parameter_shapes(self, layer: LayerShape, rank: int | None) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of every parameter that the method adds to this layer, by name; none if it cannot."""

    def file_names(self, layer: LayerShape) -> Mapping[str, str]:
        """Return the name in an adapter file, behind the layer's path, of every parameter by its own name."""

    def adapt(self, layer: nn.Module, entry: PlanEntry) -> nn.Module | None:
        """Return the module that takes the layer's place and holds it as `base_layer`, or None if it cannot.

        Its attribute `share`, 1.0 at first, multiplies the change of the outputs: at 0.0 the base layer alone answers,
        a tensor (rows,) has one factor for every row of the batch. The layer may itself be an adapter.
        """


class Role(Protocol):
    """A named set of modules, found from the model's structure. A role is an instance, since it has no options."""

    @property
    def name(self) -> str:
        """What stands behind the `@`."""

    def select(self, inventory: Inventory) -> frozenset[str]:
        """Return the paths of the modules that play this role."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """How an adaptable layer looks from outside.

    A kind that begins with `linear` computes y (..., out_features) = x (..., in_features) Wᵀ + b and can be quantized.
    A kind that begins with `stack` is a parameter of `stack` such matrices in one, named by its own path. `kernel` is
    the size of a convolution's. `called` is False where the parent computes with the layer's weight, always or on some
    devices, and does not call the layer itself; where the parent's code shows it, lorakit sees it by itself. `refusal`
    says why this one layer of a known kind cannot be adapted. With `outright` a target has to name it: roles, globs and
    other patterns look past it. `stored` is the quantizer that holds the weight already; a plan does not keep it.
    """

    kind: str
    in_features: int
    out_features: int
    kernel: tuple[int, ...] = ()
    stack: int = 0
    called: bool = True
    refusal: str = ""
    stored: Quantizer | None = field(default=None, compare=False, repr=False)
    outright: bool = False

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
    It quantizes on `device`, or where the weights lie; `plugins` are those that the plan was made with, or the default
    ones; `progress` is told the bytes read and the bytes in all.
    """

    text: str
    config: object | None = None
    with_weights: bool = True
    trust_remote_code: bool = False
    allow_pickle: bool = False
    dtype: str | None = None
    plan: Plan | None = None
    device: str | None = None
    plugins: Plugins | None = field(default=None, compare=False, repr=False)
    progress: Callable[[int, int], None] | None = field(default=None, compare=False, repr=False)

    @property
    def is_factory(self) -> bool:
        """Whether the text names code, `FILE.py:FACTORY`, and no stored weights."""
        return self.config is None and ":" in self.text
