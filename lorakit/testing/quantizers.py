"""Checks of a quantizer: what it stores, and what comes back."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lorakit.hooks.protocols import CalibratedQuantizer
from lorakit.testing.causes import require_all, staged
from lorakit.testing.checks import Check, CheckError, expect, variants_of
from lorakit.testing.configured import configured_checks
from lorakit.testing.quantized_layers import LAYER_STAGES, layer_checks
from lorakit.testing.quantizer_storage import storage_checks
from lorakit.testing.subjects import (
    DTYPES,
    Subject,
    on_devices,
    random_matrix,
    relative_error,
    same_bits,
    subject_of,
)
from lorakit.values import QuantizedWeight

# square, a single weight, columns that fill no block or byte, and a layer without outputs
SHAPES = ((64, 64), (1, 1), (3, 63), (5, 65), (0, 64))
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "minus-inf": -math.inf}
# zeros in the weight's place would have an error of 1
LARGEST_ERROR = 0.9


# each takes for granted what those before it ask
STAGES = (
    ("sizes-and-dtypes", "weight-untouched"),
    ("determinism", "transposed"),
    ("nothing-aside", "wanted-dtype", "plain-tensors", "zeros", "not-finite-weights", "declared-bits"),
    ("closeness",),
    ("error-for-its-bits",),
    ("large-weights", "calibration", "calibration-without-inputs"),
    *LAYER_STAGES,
)


def quantizer_checks(quantizer_class: type, **options: Any) -> list[Check]:
    """Return every check of a quantizer, configured with these options; `double=True` is one of them.

    Each has an `id` and is called without arguments, so that each can be a test of its own:
    `@pytest.mark.parametrize("check", quantizer_checks(Mine), ids=str)`.
    """
    subject = subject_of(quantizer_class, "quantizer", options)
    found = (_stored_checks, storage_checks, layer_checks, _calibrated)
    return staged([*configured_checks(subject), *(check for checks in found for check in checks(subject))], STAGES)


def check_quantizer(quantizer_class: type, **options: Any) -> None:
    """Run every check of a quantizer. Raises: CheckError naming each that failed."""
    require_all(f"quantizer {quantizer_class.__name__}", quantizer_checks(quantizer_class, **options))


def _stored_checks(subject: Subject) -> Iterator[Check]:
    sizes = on_devices(
        {
            f"{rows}x{columns}-{name}": ((rows, columns), dtype)
            for (rows, columns), (name, dtype) in itertools.product(SHAPES, DTYPES.items())
        }
    )
    dtypes = on_devices({name: (dtype,) for name, dtype in DTYPES.items()})
    everywhere = on_devices({"": ()})
    not_finite = on_devices(
        {f"{what}-{name}": (value, dtype) for what, value in NOT_FINITE.items() for name, dtype in DTYPES.items()}
    )
    yield from variants_of(sizes_and_dtypes, subject, sizes)
    yield from variants_of(closeness, subject, dtypes)
    yield from variants_of(zeros, subject, dtypes)
    yield from variants_of(transposed, subject, everywhere)
    yield from variants_of(not_finite_weights, subject, not_finite)
    yield from variants_of(determinism, subject, dtypes)
    yield from variants_of(weight_untouched, subject, everywhere)
    yield from variants_of(
        declared_bits, subject, {f"{rows}x{columns}": ((rows, columns),) for rows, columns in SHAPES}
    )
    yield from variants_of(wanted_dtype, subject, everywhere)


def sizes_and_dtypes(subject: Subject, shape: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    """A weight of any size and dtype is stored as plain tensors, and comes back in its shape, dtype and device."""
    quantizer, weight = subject.make(), random_matrix(*shape, dtype, device)
    quantized = quantizer.quantize(weight)
    expect(
        isinstance(quantized, QuantizedWeight),
        f"`quantize` is to return a lorakit.hooks.QuantizedWeight, not a {type(quantized).__name__}",
    )
    expect(tuple(quantized.shape) == shape, f"QuantizedWeight.shape is {quantized.shape} for a weight of {shape}")
    expect(quantized.dtype == dtype, f"QuantizedWeight.dtype is {quantized.dtype} for a weight of {dtype}")
    for name, tensor in quantized.tensors.items():
        expect(isinstance(tensor, Tensor), f"tensors[{name!r}] is a {type(tensor).__name__}, not a tensor")
        expect(type(tensor) is Tensor, f"tensors[{name!r}] is a {type(tensor).__name__}; files hold plain tensors")
        expect(name.isidentifier(), f"{name!r} in tensors is no identifier, and becomes the name of a parameter")
        expect(tensor.ndim > 0, f"tensors[{name!r}] has no dimension, and cannot be sharded; store it as (1,)")
        expect(tensor.device == weight.device, f"tensors[{name!r}] is on {tensor.device}, the weight on {device}")
        expect(not tensor.requires_grad, f"tensors[{name!r}] requires a gradient; a stored weight is frozen")
    back = quantizer.dequantize(quantized)
    expect(tuple(back.shape) == shape, f"`dequantize` returned the shape {tuple(back.shape)} for a weight of {shape}")
    expect(back.dtype == dtype, f"`dequantize` returned {back.dtype} where QuantizedWeight.dtype is {dtype}")
    expect(back.device == weight.device, f"`dequantize` returned a tensor on {back.device}, not on {device}")
    expect(bool(back.isfinite().all()), "`dequantize` returned NaN or infinity for a weight that is finite")


def closeness(subject: Subject, dtype: torch.dtype, device: str) -> None:
    """What comes back is the weight, less rounding: nearer to it than zeros would be."""
    quantizer, weight = subject.make(), random_matrix(64, 96, dtype, device)
    error = relative_error(quantizer.dequantize(quantizer.quantize(weight)), weight)
    expect(
        error < LARGEST_ERROR,
        f"the dequantized weight is off by {error:.2f} of the weight's norm (zeros would be off by 1.00)",
    )


def zeros(subject: Subject, dtype: torch.dtype, device: str) -> None:
    """A weight of zeros comes back as zeros: a scale of zero must not divide."""
    quantizer, weight = subject.make(), torch.zeros(4, 64, dtype=dtype, device=device)
    back = quantizer.dequantize(quantizer.quantize(weight))
    largest = float(back.abs().max())
    expect(largest <= 1e-3, f"zeros came back with values up to {largest}")


def transposed(subject: Subject, device: str) -> None:
    """A weight that is no contiguous tensor, as transformers' Conv1D gives it, is stored like its contiguous copy."""
    quantizer, weight = subject.make(), random_matrix(96, 64, device=device).T
    _expect_same(quantizer.quantize(weight), quantizer.quantize(weight.contiguous()), "a transposed view", "its copy")


def not_finite_weights(subject: Subject, value: float, dtype: torch.dtype, device: str) -> None:
    """A weight with NaN or infinity is refused, or comes back with just those entries not finite and all others finite.

    The refusal is a ValueError that says `not finite`; lorakit.hooks.require_finite raises it.
    """
    quantizer, weight = subject.make(), random_matrix(4, 65, dtype, device)
    weight[1, 3] = value
    try:
        back = quantizer.dequantize(quantizer.quantize(weight))
    except ValueError as error:
        expect("finite" in str(error), f"the ValueError says {str(error)!r} and not that the weight is not finite")
        return
    expect(not bool(back[1, 3].isfinite()), f"the weight holds {value}, which came back as {float(back[1, 3])}")
    lost = int((~back.isfinite()).sum()) - 1
    expect(
        lost == 0,
        f"one {value} in the weight made {lost} other values NaN or infinite; "
        "call lorakit.hooks.require_finite(weight) first in `quantize`",
    )


def determinism(subject: Subject, dtype: torch.dtype, device: str) -> None:
    """The same weight gives the same bits, whatever the random generators were seeded with."""
    quantizer, weight = subject.make(), random_matrix(64, 65, dtype, device)
    torch.manual_seed(1)
    first = quantizer.quantize(weight)
    torch.manual_seed(2)
    _expect_same(subject.make().quantize(weight), first, "a second time", "the first")
    expect(
        same_bits(quantizer.dequantize(first), quantizer.dequantize(first)),
        "`dequantize` gave other bits the second time",
    )


def weight_untouched(subject: Subject, device: str) -> None:
    """`quantize` leaves the weight as it is and keeps no memory of it alive."""
    quantizer, weight = subject.make(), random_matrix(64, 64, torch.float32, device)
    before = weight.clone()
    quantized = quantizer.quantize(weight)
    expect(same_bits(weight, before), "`quantize` changed the weight that it was given")
    for name, tensor in quantized.tensors.items():
        expect(
            tensor.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr(),
            f"tensors[{name!r}] is a view of the weight, which stays in memory so; clone it",
        )


def declared_bits(subject: Subject, shape: tuple[int, int]) -> None:
    """`bits_per_weight` needs no weight, and times the weights it gives the bytes that are stored."""
    quantizer = subject.make()
    bits = quantizer.bits_per_weight(shape)
    expect(isinstance(bits, float | int) and math.isfinite(bits), f"bits_per_weight({shape}) is {bits!r}, no number")
    tensors = quantizer.quantize(random_matrix(*shape, torch.bfloat16)).tensors.values()
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    declared = bits * shape[0] * shape[1] / 8
    # bits of a byte that is not full are rounded up, once a tensor
    expect(
        abs(declared - held) <= len(tensors),
        f"bits_per_weight({shape}) is {bits:g}, which makes {declared:g} bytes; the tensors hold {held}",
    )


def wanted_dtype(subject: Subject, device: str) -> None:
    """`dequantize` follows QuantizedWeight.dtype, which changes when a model is cast (`model.half()`)."""
    quantizer = subject.make()
    quantized = quantizer.quantize(random_matrix(8, 64, torch.float32, device))
    for dtype in DTYPES.values():
        found = quantizer.dequantize(dataclasses.replace(quantized, dtype=dtype)).dtype
        expect(found == dtype, f"`dequantize` returned {found} where QuantizedWeight.dtype is {dtype}")


def _calibrated(subject: Subject) -> Iterator[Check]:
    if all(hasattr(subject.plugin, method) for method in ("observe", "quantize_observed")):
        yield from variants_of(calibration, subject, on_devices({"": ()}))
        yield from variants_of(calibration_without_inputs, subject, on_devices({"": ()}))


def calibration(subject: Subject, device: str) -> None:
    """What `observe` keeps of a layer's inputs shapes its weight, in the same way each time."""
    quantizer: CalibratedQuantizer = subject.make()
    weight = random_matrix(32, 64, device=device)

    def calibrated() -> QuantizedWeight:
        observed = None
        for seed in (1, 2):
            inputs = torch.stack([50 * random_matrix(3, 64, device=device, seed=seed + 10 * row) for row in range(2)])
            observed = quantizer.observe(inputs, observed)
        expect(observed is not None, "`observe` returned None, which stands for no inputs at all")
        return quantizer.quantize_observed(weight, observed)

    first = calibrated()
    _expect_same(calibrated(), first, "a second time", "the first")
    error = relative_error(quantizer.dequantize(first), weight)
    expect(error < LARGEST_ERROR, f"the calibrated weight is off by {error:.2f} of the weight's norm")


def calibration_without_inputs(subject: Subject, device: str) -> None:
    """`quantize_observed(weight, None)` quantizes a layer that no input reached."""
    quantizer: CalibratedQuantizer = subject.make()
    weight = random_matrix(32, 64, device=device)
    _expect_same(
        quantizer.quantize_observed(weight, None),
        quantizer.quantize(weight),
        "`quantize_observed(weight, None)`",
        "`quantize(weight)`",
    )


def _expect_same(found: QuantizedWeight, wanted: QuantizedWeight, what: str, reference: str) -> None:
    if found.tensors.keys() != wanted.tensors.keys():
        raise CheckError(f"{what} stored {list(found.tensors)}, and {reference} {list(wanted.tensors)}")
    for name, tensor in wanted.tensors.items():
        expect(same_bits(found.tensors[name], tensor), f"{what} gave other bits in tensors[{name!r}] than {reference}")
