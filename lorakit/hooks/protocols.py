"""What a plugin's objects look like: one protocol a kind.

A plugin object is a frozen dataclass *class*: its fields are its options, with types and defaults, and an instance is
one configured quantizer, initializer, optimizer or method. `name` is a class variable; the docstring's first line says
what it is; `__post_init__` may raise ValueError, which becomes an error at the option's place in the spec. A field's
metadata may hold `help`, a sentence, `unit`, "%" or "B", for an option that may be written with that unit, and
`example`, a value to test an option with that has no default. `lorakit.testing` checks all that is said here.
Nothing here imports torch, and a plugin should import it only inside its methods, so that `lorakit check` stays quick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from lorakit.values import InitContext, LayerShape, LowRank, QuantizedWeight, Storage

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from lorakit.planning.inventory import Inventory
    from lorakit.planning.plan import PlanEntry


class Quantizer(Protocol):
    """Stores a frozen weight in fewer bits. A field `double: bool` says that double quantization is supported.

    The same weight gives the same bits. Any size is stored: odd ones, one weight, no rows. A weight with NaN or
    infinity is refused with a ValueError that says `not finite` (`lorakit.hooks.require_finite` raises it), or just
    those values come back not finite; what they share a block with is never lost in silence.

    Its products are computed by a `Kernel`: without one of its own, by dequantizing for each product. What is stored
    is held as frozen parameters: tensors of at least one dimension, which can be sharded. `lorakit.hooks.packing` packs
    codes of a few bits.
    """

    name: ClassVar[str]

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        """Return weight (out_features, in_features) quantized, on the weight's device."""

    def dequantize(self, quantized: QuantizedWeight) -> Tensor:
        """Return the weight (out_features, in_features) in `quantized.dtype`."""

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Return the bits that one weight of a matrix of this shape takes, scales included."""


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


class Linear(Protocol):
    """Multiplies inputs with a quantized weight; what a `Kernel` gives a layer."""

    def __call__(
        self, x: Tensor, base: Mapping[str, Tensor], bias: Tensor | None, low_rank: Sequence[LowRank]
    ) -> Tensor:
        """Return x (..., in_features) times the transposed weight, plus bias, plus what every adapter adds.

        `base` are the quantizer's tensors by name. The result has the dtype that a plain Linear would give, under
        autocast too. Gradients reach x, the bias and the adapters; autograd keeps no dequantized weight.
        """


class Kernel(Protocol):
    """A way to multiply with weights of some storage. A kernel is an instance, since it has no options."""

    @property
    def name(self) -> str:
        """What the lists of plugins call it."""

    def linear(self, storage: Storage) -> Linear | None:
        """Return what multiplies with a weight stored so, or None if this kernel does not fit.

        Asked when a layer is built, and again when it moves to another device or dtype; never in a forward. What it
        returns is called in forwards alone: let it make no tensor that it could have made here, nor look at values.
        """


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
