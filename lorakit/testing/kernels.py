"""Checks of a kernel: what it computes in layers of a quantizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from lorakit.language.printer import call_text
from lorakit.testing.causes import require_all, staged
from lorakit.testing.checks import Check, expect, variants_of
from lorakit.testing.quantized_layers import LAYER_STAGES, layer_checks
from lorakit.testing.subjects import Subject, random_matrix, subject_of
from lorakit.values import Storage


def kernel_checks(kernel: Any, quantizer_class: type, **options: Any) -> list[Check]:
    """Return every check of a kernel, which is an instance, on layers of a quantizer configured with these options."""
    subject = dataclasses.replace(subject_of(quantizer_class, "quantizer", options), kernels=(kernel,))
    return staged([*_own_checks(subject), *layer_checks(subject)], (("kernel-name", "kernel-fits"), *LAYER_STAGES))


def check_kernel(kernel: Any, quantizer_class: type, **options: Any) -> None:
    """Run every check of a kernel. Raises: CheckError naming each that failed."""
    require_all(f"kernel {getattr(kernel, 'name', kernel)}", kernel_checks(kernel, quantizer_class, **options))


def fits(kernel: Any, subject: Subject) -> bool:
    """Return whether a kernel multiplies with what a quantizer stores on the CPU."""
    quantizer, weight = subject.make(), random_matrix(48, 64)
    return kernel.linear(Storage(quantizer, (48, 64), weight.dtype, weight.device)) is not None


def _own_checks(subject: Subject) -> Iterator[Check]:
    yield from variants_of(kernel_name, subject)
    yield from variants_of(kernel_fits, subject)


def kernel_name(subject: Subject) -> None:
    """`name` is a word that lists of plugins can show."""
    assert subject.kernels is not None
    found = getattr(subject.kernels[0], "name", None)
    expect(isinstance(found, str) and found.isidentifier(), f"`name` is {found!r}; a kernel is an instance with a name")


def kernel_fits(subject: Subject) -> None:
    """`linear` returns a function for what the quantizer stores."""
    assert subject.kernels is not None
    expect(fits(subject.kernels[0], subject), f"`linear` returned None for a layer of {call_text(subject.call)}")
