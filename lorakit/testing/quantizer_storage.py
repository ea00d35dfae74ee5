"""Checks of what a quantizer stores: plain tensors that hold everything, as close as their bits allow, at any size."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lorakit.testing.checks import Check, expect, variants_of
from lorakit.testing.subjects import Subject, on_devices, random_matrix, relative_error, same_bits
from lorakit.values import QuantizedWeight

# rows longer than any block, an odd width above one, and more weights than 16 bits count
LARGE = ((2, 5003), (3, 4097), (700, 131))
# normal values cost 1.65 · 2^-b of their norm at b bits a value (Panter and Dite 1951), and several times that where
# some of the bits are an exponent, as in float8; ten times is far off
FAR = 10 * 1.65
# what is declared beyond these are scales
CODE_BITS = 8
# what rounding to bfloat16 costs; nothing is asked to be closer
FINEST = 4e-3


def storage_checks(subject: Subject) -> Iterator[Check]:
    """Yield the checks of what is stored."""
    yield from variants_of(plain_tensors, subject, on_devices({"": ()}))
    yield from variants_of(nothing_aside, subject)
    shapes = {f"{rows}x{columns}": ((rows, columns),) for rows, columns in LARGE}
    yield from variants_of(large_weights, subject, shapes)
    yield from variants_of(error_for_its_bits, subject)


def plain_tensors(subject: Subject, device: str) -> None:
    """What is stored can be sharded and copied: plain tensors of a dimension at least, bytes never seen as floats."""
    tensors = subject.make().quantize(random_matrix(256, 256, torch.bfloat16, device)).tensors
    for name, tensor in tensors.items():
        expect(
            type(tensor) is torch.Tensor, f"tensors[{name!r}] is a {type(tensor).__name__}, not a plain torch.Tensor"
        )
        expect(tensor.ndim > 0, f"tensors[{name!r}] has no dimension, which cannot be sharded: make it (1,)")
        expect(not tensor.requires_grad, f"tensors[{name!r}] requires a gradient")
        expect(
            not tensor.is_floating_point() or bool(tensor.isfinite().all()),
            f"tensors[{name!r}] is {tensor.dtype} and not finite: packed bytes stay integers, since copies of floats "
            "may rewrite a NaN's bits",
        )


def nothing_aside(subject: Subject) -> None:
    """The tensors hold everything: copies of them in another quantizer's hands, after other weights, give the same."""
    first, other = random_matrix(48, 64), 3 * random_matrix(48, 64, seed=1)
    quantizer = subject.make()
    quantized = quantizer.quantize(first)
    wanted = quantizer.dequantize(quantized)
    kept = {name: tensor.clone() for name, tensor in quantized.tensors.items()}
    shape, dtype = quantized.shape, quantized.dtype
    del quantized
    quantizer.dequantize(quantizer.quantize(other))
    found = subject.make().dequantize(QuantizedWeight(kept, shape, dtype))
    expect(same_bits(found, wanted), "copies of the tensors give another weight: what `dequantize` needs is kept aside")


def large_weights(subject: Subject, shape: tuple[int, int]) -> None:
    """Wide rows, odd widths and many weights come back as close as a small square does, in every part."""
    quantizer = subject.make()
    small, large = random_matrix(64, 64), random_matrix(*shape)
    usual = relative_error(quantizer.dequantize(quantizer.quantize(small)), small)
    back = quantizer.dequantize(quantizer.quantize(large))
    for part, wanted in zip(back.chunk(7, dim=1), large.chunk(7, dim=1), strict=True):
        error = relative_error(part, wanted)
        expect(
            error < max(2.5 * usual, FINEST),
            f"a part of a weight {shape} is off by {error:.2g} of its norm, and a weight (64, 64) by {usual:.2g}",
        )


def error_for_its_bits(subject: Subject) -> None:
    """The error is not far beyond what the declared bits allow."""
    quantizer, weight = subject.make(), random_matrix(256, 256)
    bits = quantizer.bits_per_weight((256, 256))
    error = relative_error(quantizer.dequantize(quantizer.quantize(weight)), weight)
    allowed = max(FAR * 2.0 ** -min(int(bits), CODE_BITS), FINEST)
    expect(error < allowed, f"at {bits:g} bits a weight the error is {error:.2g} of the norm; {allowed:.2g} is too far")
