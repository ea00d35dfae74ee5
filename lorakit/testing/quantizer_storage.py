"""Checks of what a quantizer stores: plain tensors that hold everything, as close as their bits allow, at any size."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lorakit.hooks.options import configure
from lorakit.testing.checks import Check, expect, variants_of
from lorakit.testing.subjects import Subject, on_devices, random_matrix, relative_error, same_bits
from lorakit.values import QuantizedWeight

# rows longer than any block and than 16 bits count, odd widths, one column, a few inputs, and more weights than 20 bits
LARGE = ((2, 5003), (3, 4097), (1, 70001), (70001, 1), (67, 3), (700, 131), (1031, 1031))
# a part has to have so many weights for its error to say something
ENOUGH = 64
# normal values cost 1.65 · 2^-b of their norm at b bits a code (Panter and Dite 1951); twice that is far off, and
# ten times where several of the bits are an exponent, as in float8
IDEAL = 1.65
FAR, FAR_WITH_EXPONENT = 2, 10
EXPONENT_BITS = 8
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
    """The tensors hold everything: copies of them, after other weights and in a fresh import's hands, give the same."""
    first, other = random_matrix(48, 64), 3 * random_matrix(48, 64, seed=1)
    quantizer = subject.make()
    quantized = quantizer.quantize(first)
    wanted = quantizer.dequantize(quantized)
    kept = {name: tensor.clone() for name, tensor in quantized.tensors.items()}
    shape, dtype = quantized.shape, quantized.dtype
    del quantized
    quantizer.dequantize(quantizer.quantize(other))
    found = configure(_afresh(subject.plugin), subject.call).dequantize(QuantizedWeight(kept, shape, dtype))
    expect(same_bits(found, wanted), "copies of the tensors give another weight: what `dequantize` needs is kept aside")


def _afresh(plugin: Any) -> Any:
    """Return the class as another import of its package has it, whose modules remember nothing; itself if none can."""
    package = plugin.__module__.partition(".")[0]
    known = {name: one for name, one in sys.modules.items() if name.partition(".")[0] == package}
    if package == __name__.partition(".")[0]:
        return plugin
    for name in known:
        del sys.modules[name]
    try:
        return functools.reduce(getattr, plugin.__qualname__.split("."), importlib.import_module(plugin.__module__))
    except Exception:
        return plugin
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]
        sys.modules.update(known)


def large_weights(subject: Subject, shape: tuple[int, int]) -> None:
    """Wide rows, odd widths, single columns and many weights come back as close as a small square, in every part."""
    quantizer = subject.make()
    small, large = random_matrix(64, 64), random_matrix(*shape)
    usual = relative_error(quantizer.dequantize(quantizer.quantize(small)), small)
    back = quantizer.dequantize(quantizer.quantize(large))
    for where, part in _parts(large):
        error = relative_error(back[part], large[part])
        expect(
            error < max(2.5 * usual, FINEST),
            f"a part of a weight {shape}, {where}, is off by {error:.2g} of its norm, and a weight (64, 64) by "
            f"{usual:.2g}",
        )


def _parts(weight: Tensor) -> Iterator[tuple[str, tuple[slice, slice]]]:
    """Yield parts that are large enough to tell: sevenths of the rows and of the columns, and the last of each."""
    rows, columns = weight.shape
    for start, stop in _spans(rows):
        if (stop - start) * columns >= ENOUGH:
            yield f"from row {start} and column 0 on", (slice(start, stop), slice(None))
    for start, stop in _spans(columns):
        if (stop - start) * rows >= ENOUGH:
            yield f"from row 0 and column {start} on", (slice(None), slice(start, stop))


def _spans(length: int) -> Iterator[tuple[int, int]]:
    step = -(-length // 7)
    yield from ((start, min(length, start + step)) for start in range(0, length, step))
    yield length - 1, length


def error_for_its_bits(subject: Subject) -> None:
    """The error is not far beyond what the bits of a code allow."""
    quantizer, weight = subject.make(), random_matrix(256, 256)
    quantized = quantizer.quantize(weight)
    # what is not in the largest tensor are scales
    bits = max(8 * one.numel() * one.element_size() for one in quantized.tensors.values()) / weight.numel()
    error = relative_error(quantizer.dequantize(quantized), weight)
    far = FAR_WITH_EXPONENT if bits >= EXPONENT_BITS else FAR
    allowed = max(far * IDEAL * 2.0 ** -int(bits), FINEST)
    expect(error < allowed, f"at {bits:g} bits a code the error is {error:.2g} of the norm; {allowed:.2g} is too far")
