"""Checks of an initializer: what it makes of two empty matrices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import lorakit
from lorakit.hooks.starting import StartContext
from lorakit.language.printer import call_text
from lorakit.planning.plan import Settings
from lorakit.testing.causes import require_all, staged
from lorakit.testing.checks import Check, CheckError, expect, variants_of
from lorakit.testing.configured import configured_checks
from lorakit.testing.subjects import Subject, random_matrix, relative_error, same_bits, subject_of
from lorakit.values import LayerShape

# (outputs, inputs, rank): even, a wide one of odd rank, a single input, a single output, the full rank, many of all
SHAPES = ((16, 24, 4), (7, 33, 3), (9, 1, 1), (1, 9, 1), (5, 6, 5), (517, 1031, 67))
SCALING = 2.0


# each takes for granted what those before it ask
STAGES = (
    ("fills-in-place",),
    ("flipped", "lookup", "weight-dtypes"),
    ("determinism",),
    ("can-learn", "start"),
    ("applied",),
)


def initializer_checks(initializer_class: type, **options: Any) -> list[Check]:
    """Return every check of an initializer, configured with these options; each has an `id` and is called."""
    subject = subject_of(initializer_class, "initializer", options)
    return staged([*configured_checks(subject), *_start_checks(subject)], STAGES)


def check_initializer(initializer_class: type, **options: Any) -> None:
    """Run every check of an initializer. Raises: CheckError naming each that failed."""
    require_all(f"initializer {initializer_class.__name__}", initializer_checks(initializer_class, **options))


def _start_checks(subject: Subject) -> Iterator[Check]:
    shapes = {f"{rows}x{columns}-rank-{rank}": (rows, columns, rank) for rows, columns, rank in SHAPES}
    yield from variants_of(fills_in_place, subject, shapes)
    yield from variants_of(start, subject, shapes)
    yield from variants_of(can_learn, subject, shapes)
    yield from variants_of(determinism, subject)
    yield from variants_of(flipped, subject)
    yield from variants_of(lookup, subject)
    yield from variants_of(applied, subject, {"": (False,), "quantized": (True,)})
    yield from variants_of(weight_dtypes, subject, {"bf16": (torch.bfloat16,), "fp16": (torch.float16,)})


def fills_in_place(subject: Subject, outputs: int, inputs: int, rank: int) -> None:
    """`initialize` fills both matrices, whatever their shapes and rank, with finite numbers, and returns nothing."""
    lora_A, lora_B = torch.full((rank, inputs), torch.nan), torch.full((outputs, rank), torch.nan)
    weight = random_matrix(outputs, inputs)
    before = weight.clone()
    answer = subject.make().initialize(lora_A, lora_B, _context(weight))
    expect(answer is None, f"`initialize` returned a {type(answer).__name__}; it is to fill lora_A and lora_B in place")
    for name, matrix in (("lora_A", lora_A), ("lora_B", lora_B)):
        bad = int((~matrix.isfinite()).sum())
        expect(not bad, f"{bad} of {matrix.numel()} values of {name} {tuple(matrix.shape)} were not set, or not finite")
    expect(same_bits(weight, before), "`initialize` changed the base weight; it may only look at it")


def start(subject: Subject, outputs: int, inputs: int, rank: int) -> None:
    """A fresh adapter changes nothing, B·A = 0, unless the class says `changes_start` or `changes_base = True`."""
    weight = random_matrix(outputs, inputs)
    lora_A, lora_B = _initialized(subject, weight, rank)
    if any(getattr(subject.plugin, name, False) for name in ("changes_start", "changes_base")):
        return
    change = float((SCALING * lora_B @ lora_A).norm() / weight.norm())
    # two matrices whose product is zero give one that is rounded: to a part of what each weighs
    rounding = torch.finfo(lora_A.dtype).eps * float(SCALING * lora_B.norm() * lora_A.norm() / weight.norm())
    expect(
        change < max(1e-5, rounding),
        f"B·A moves the weight by {change:.2g} of its norm before any training; fill lora_B with zeros, or "
        "declare it on the class: `changes_start: ClassVar[bool] = True`, or `changes_base` where B·A is to be taken "
        "from the base weight",
    )


def applied(subject: Subject, quantized: bool) -> None:
    """On a model it leaves the base weight as it is, and the outputs too, unless the class says otherwise."""
    layer, x = nn.Linear(24, 16), random_matrix(8, 24, seed=1)
    with torch.no_grad():
        layer.weight.copy_(random_matrix(16, 24))
    model = nn.Sequential(layer)
    held, plain = layer.weight.detach().clone(), model(x)
    plugins = subject.plugins()
    text = f"adapt 0 rank 4 alpha 8 dtype fp32 init {call_text(subject.call)} {'quant nf4' * quantized}"
    spec = lorakit.parse(text, plugins=plugins)
    adapted = lorakit.apply(spec, model, plugins=plugins, calibration=[x, random_matrix(8, 24, seed=2)])
    expect(
        same_bits(layer.weight, held), "the base weight was changed in place; the class says `changes_base` for that"
    )
    if quantized:
        plain = adapted.get_submodule("0.base_layer")(x)
    says = [said for said in ("changes_start", "changes_base") if getattr(subject.plugin, said, False)]
    if (says == ["changes_base"] and quantized) or "changes_start" in says:
        return
    error = relative_error(adapted(x), plain)
    expect(error < 1e-4, f"a fresh adapter moves the outputs by {error:.2g} of their norm")


def can_learn(subject: Subject, outputs: int, inputs: int, rank: int) -> None:
    """A and B are not both zero: the gradient of each is a product with the other, so nothing would ever learn."""
    lora_A, lora_B = _initialized(subject, random_matrix(outputs, inputs), rank)
    expect(bool(lora_A.any()) or bool(lora_B.any()), "A and B are both zero, and no gradient ever moves them")


def determinism(subject: Subject) -> None:
    """The same generator state gives the same bits: every random number comes from `context.generator`."""
    weight = random_matrix(16, 24)
    torch.manual_seed(1)
    first = _initialized(subject, weight, 4)
    torch.manual_seed(2)
    second = _initialized(subject, weight, 4)
    for name, one, other in zip(("lora_A", "lora_B"), first, second, strict=True):
        expect(
            same_bits(one, other),
            f"{name} differs from run to run; draw with `generator=context.generator`, as in "
            "`lora_A.normal_(generator=context.generator)`",
        )


def flipped(subject: Subject) -> None:
    """Matrices that are transposed views, as expert stacks give them, are filled as contiguous ones are."""
    weight = random_matrix(16, 24)
    lora_A, lora_B = torch.full((24, 4), torch.nan).T, torch.full((4, 16), torch.nan).T
    subject.make().initialize(lora_A, lora_B, _context(weight))
    expect(bool(lora_A.isfinite().all() and lora_B.isfinite().all()), "transposed views were not filled wholly")


def lookup(subject: Subject) -> None:
    """An embedding, where one input alone adds up (`context.fan_in` is 1), gets finite start values too."""
    weight = random_matrix(8, 50)
    lora_A, lora_B = torch.full((4, 50), torch.nan), torch.full((8, 4), torch.nan)
    subject.make().initialize(lora_A, lora_B, _context(weight, fan_in=1))
    expect(bool(lora_A.isfinite().all() and lora_B.isfinite().all()), "with fan_in = 1 some values are not finite")


def weight_dtypes(subject: Subject, dtype: torch.dtype) -> None:
    """The base weight may be in 16 bits while lora_A and lora_B are float32."""
    lora_A, lora_B = _initialized(subject, random_matrix(16, 24, dtype), 4)
    expect(bool(lora_A.isfinite().all() and lora_B.isfinite().all()), f"a base weight in {dtype} gave NaN or infinity")


def _initialized(subject: Subject, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    lora_A, lora_B = torch.full((rank, weight.shape[1]), torch.nan), torch.full((weight.shape[0], rank), torch.nan)
    with torch.no_grad():
        subject.make().initialize(lora_A, lora_B, _context(weight))
    return lora_A, lora_B


def _context(weight: Tensor, fan_in: int | None = None) -> StartContext:
    outputs, inputs = weight.shape
    shape = LayerShape("embedding" if fan_in == 1 else "linear", inputs, outputs)

    def nothing(lora_A: Tensor, lora_B: Tensor) -> None:
        raise CheckError("an initializer fills the matrices itself; `context.initialize` is for methods")

    return StartContext(
        path="layer",
        shape=shape,
        settings=Settings(rank=1, alpha=SCALING),
        weight=lambda: weight.float(),
        stored_weight=lambda: weight.float(),
        initialize=nothing,
        generator=torch.Generator().manual_seed(7),
    )
