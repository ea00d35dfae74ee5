"""What a plugin's objects look like: one protocol a kind.

A plugin object is a frozen dataclass *class*: its fields are its options, with types and defaults, and an instance is
one configured quantizer, initializer, optimizer or method. `name` is a class variable; the docstring's first line says
what it is; `__post_init__` may raise ValueError, which becomes an error at the option's place in the spec. A field's
metadata may hold `help`, a sentence, `unit`, "%" or "B", for an option that may be written with that unit, and
`example`, a value to test an option with that has no default. `lorakit.testing` checks all that is said here.
Nothing here imports torch, and a plugin should import it only inside its methods, so that `lorakit check` stays quick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from lorakit.data.examples import Example, LeftOut
    from lorakit.data.fields import Fields
    from lorakit.data.rows import Row
    from lorakit.hooks.starting import StartContext
    from lorakit.planning.inventory import Inventory
    from lorakit.planning.plan import ParameterPlan, PlanEntry, Settings
    from lorakit.values import LayerShape, LowRank, LowRankPart, QuantizedWeight, Renamed, Storage


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

    def observe(self, x: Tensor, observed: Any) -> Any:
        """Return what is known of a layer's inputs after a batch, as an `Observer`."""

    def quantize_observed(self, weight: Tensor, observed: Any) -> QuantizedWeight:
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
    """Sets the start values of lora_A and lora_B.

    A fresh adapter changes nothing: B·A is 0, while A and B are not both. A class variable `changes_start = True` says
    that this one's does, such as one that starts from what quantizing lost. `changes_base = True` says that it starts
    from a part of the weight, which is then taken from the base, W₀ - scaling · B·A, before that is stored: a fresh
    adapter changes nothing still (PiSSA, Meng et al. 2024, arXiv:2404.02948). Every random number comes from the
    context's generator, so that the same run gives the same bits.
    """

    name: ClassVar[str]

    def initialize(self, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
        """Fill lora_A (rank, inputs) and lora_B (outputs, rank), float32 on the CPU, in place.

        Inputs are in_features, in_channels · kernel or num_embeddings, outputs the base layer's.
        """


@runtime_checkable
class Observer(Protocol):
    """An initializer or a quantizer that sees what goes into its layers first: one without `observe` does not.

    The model runs over the calibration data once, before anything changes; whoever gives none gets a PlanError.
    """

    name: ClassVar[str]

    def observe(self, x: Tensor, observed: Any) -> Any:
        """Return what is known of a layer's inputs after a batch x (..., in_features), and after those `observed`.

        Before the first, `observed` is None. What is returned is kept for every layer at once until the layer is done:
        sums, not samples.
        """


@runtime_checkable
class RankMover(Observer, Protocol):
    """An initializer that decides the ranks itself once it has seen the inputs (EVA, arXiv:2410.07170)."""

    def ranks(self, planned: Mapping[str, int], observed: Mapping[str, Any]) -> Mapping[str, int]:
        """Return the rank of every layer by path, given the planned ones; 0 leaves a layer without an adapter."""


class OptimizerFactory(Protocol):
    """Builds an optimizer from parameter groups.

    An optimizer that steps one set of weights and means another to be used has methods `train` and `eval` that switch
    between them: trainers call them around steps, and before weights are measured or saved. `constant_lr = True` on the
    class asks trainers to leave the learning rate as it is after the warm-up. `changes_gradients = True` owns that a
    step leaves other numbers in the gradients, and `couples_parameters = True` that it takes parameters together, as
    for a norm over all of them: such an optimizer's state cannot page, and a spec that asks for it is refused.
    """

    name: ClassVar[str]
    default_lr: ClassVar[float]

    def build(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer; each group has `params` and `lr`. Where state pages, lorakit wraps what is returned."""

    def state(self, shape: tuple[int, ...], dtype: str) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """Return the tensors that the optimizer keeps for one parameter, by name: (shape, dtype) of each.

        Dtypes are torch's by name, such as `float32`. The optimizer's step keeps these and no others. A class variable
        `shared_state` names those that are one tensor for all parameters, such as a table.
        """


class Method(Protocol):
    """A way to parametrize the change of a layer; `lora` is one.

    Of the clauses of `adapt`, `clauses` names those that are settings of this method: any of `rank`, `alpha`,
    `scaling`, `dropout`, `init` and `lr_ratio`. A rule that gives another is refused; one without a `rank` too, where
    the method takes one. A class variable `partial_gradients = True` owns that training takes a part of what adapters
    compute as constant (DoRA's norm, Liu et al. 2024, arXiv:2402.09353, section 4.3).
    """

    name: ClassVar[str]
    clauses: ClassVar[frozenset[str]]

    def parameters(self, layer: LayerShape, settings: Settings) -> Sequence[ParameterPlan]:
        """Return what the method adds to this layer: none if it cannot.

        Counting, starting, optimizing, saving, loading and checking all go by this table. Raises: ValueError with the
        reason if these settings do not fit the layer.
        """

    def start(self, parameters: Mapping[str, Tensor], context: StartContext) -> None:
        """Fill the parameters of one layer, float32 on the CPU, in place, by their names.

        A shared parameter is among those of the first layer that has it, and of no other. The same weight, inputs
        and generator give the same bits. `context.initialize(lora_A, lora_B)` does what the rule's `init` says.
        """

    def adapt(self, layer: nn.Module, entry: PlanEntry, parameters: Mapping[str, nn.Parameter]) -> nn.Module | None:
        """Return the adapter, an `Adapter`, that takes the layer's place; None if this kind of layer is not known.

        It holds the layer as `base_layer` and registers the very `parameters` that it is given under their names. The
        layer may be an adapter itself, and its weight quantized. Where the entry decides a parameter, `layer` is the
        module that holds it, and the adapter maps the parameter to its effective value.
        """

    def peft(self, entries: Sequence[PlanEntry]) -> Mapping[str, Any] | None:
        """Return `peft_type` and what else of PEFT's config says how these adapters compute, or None.

        The entries are all of this method, each with its own options. None means that PEFT cannot compute them: the
        folder then carries a type that PEFT refuses by name. A mapping whose name ends in `_pattern` is by path.
        """


@runtime_checkable
class Adapter(Protocol):
    """The module that a method puts in a layer's place. An adapter on a parameter has no `base_layer`.

    Weights come and go as matrices (out_features, in_features) for linear layers whatever way they lie in memory, and
    as the layer holds them for all others. Where a parent may compute with the weight of its child instead of calling
    it, `weight` and `bias` are what this adapter makes of the base layer's, and lie as those do.
    """

    base_layer: nn.Module
    strength: float | Tensor
    """What the change of the outputs is multiplied by, 1.0 at first: at 0.0 the base layer alone answers, a tensor
    (rows,) has a factor for every row of the batch. Never looked at by value inside a forward."""

    def exact_weight(self, weight: Tensor) -> Tensor:
        """Return the weight that computes what this adapter does over a base layer of that weight, in float32.

        `weight` is float32 too. A method whose change is no change of a weight has no such function; one that changes
        the bias as well has `exact_bias(bias)` beside it.
        """


class Role(Protocol):
    """A named set of modules, found from the model's structure. A role is an instance, since it has no options."""

    @property
    def name(self) -> str:
        """What stands behind the `@`."""

    def select(self, inventory: Inventory) -> frozenset[str]:
        """Return the paths of the modules that play this role."""


@runtime_checkable
class FormerNames(Protocol):
    """What earlier releases of a library called the weights of one of its models, which files and specs still say."""

    def former(self, weight: str) -> str:
        """Return what a weight of today was called: the very name, if nothing changed.

        Every module is asked for as if it had a weight, `PATH.weight`.
        """

    def today(self, former: str) -> Renamed | None:
        """Return the weight of the model that was called so, or None."""


@runtime_checkable
class FormerParts(FormerNames, Protocol):
    """Former names of weights that are more or fewer today, such as experts that are one stack now."""

    def joined(self, parts: Sequence[LowRankPart], stack: int) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Return the changes of today's weights that those of former ones make together, by the weights' names.

        The parts are all that are known of one weight, of `stack` matrices. Each change is a pair A (rank, inputs) and
        B (outputs, rank), or for a stack of weights A (stack, rank, inputs) and B (stack, outputs, rank).
        Raises: ValueError with the reason where two low-rank matrices cannot express it.
        """


class DataFormat(Protocol):
    """A kind of file that holds records. A format is an instance, since it has no options.

    Every suffix and every mark belongs to one format. A class variable `named_only = True` says that folders are not
    searched for its files, as for text: a README is text.
    """

    @property
    def name(self) -> str:
        """What messages and the lists of plugins call it."""

    @property
    def suffixes(self) -> Sequence[str]:
        """How the names of its files end, in small letters, such as `.jsonl`."""

    @property
    def marks(self) -> Sequence[str]:
        """Files that make the folder that holds them one thing of this format, such as `state.json`."""

    def rows(self, path: Path, progress: Callable[[int, int], None]) -> Iterator[Row]:
        """Yield the records of a file, or of a folder that holds a mark; `progress` is told what is read, and of what.

        Raises: DataError naming the file, and the line where it has lines.
        """


class DataShape(Protocol):
    """A form of records, told by their columns. A shape is an instance, since it has no options."""

    @property
    def name(self) -> str:
        """What many of its records are called, such as `chats`."""

    @property
    def needs(self) -> Sequence[str]:
        """The columns that tell it; a record in which one is empty is left out, but for `prompt`."""

    @property
    def may(self) -> Sequence[str]:
        """The other columns that it reads."""

    def example(self, fields: Fields) -> Example | LeftOut:
        """Return what is learned from a record, or why nothing is. Raises: DataError naming `fields.place`."""
