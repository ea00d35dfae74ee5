"""A product with a quantized weight and what adapters add to it as one op, which compilers do not take apart.

Eager code multiplies without it (`dequantized.py`): an op costs time on the host. Who compiles may find the products
that read one input and compute them together (`lorakit.compiling`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lorakit.values import Storage

# from a quantizer's tensors by name to the weight (out_features, in_features) in a dtype
Dequantize = Callable[[Mapping[str, Tensor], torch.dtype], Tensor]


class FourBits(NamedTuple):
    """What weights have to share to be written as one by `merging.py`: the format, and the size of blocks."""

    quant_type: str
    blocksize: int


@dataclass(frozen=True, slots=True)
class Form:
    """How one kind of stored weight is multiplied with, under the name that the op is given: ops take no objects.

    `merge` is the layout that it may be written in together with what adapters add, if there is one.
    """

    quantizer: Any
    dequantize: Dequantize
    shape: tuple[int, int]
    merge: FourBits | None = None


FORMS: dict[str, Form] = {}

_LIBRARY = torch.library.Library("lorakit", "FRAGMENT")
_LIBRARY.define(
    "product(Tensor x, Tensor? bias, Tensor[] stored, Tensor[] pairs, float[] scalings, str names, str form) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    "product_backward(Tensor gradient, Tensor x, Tensor[] stored, Tensor[] pairs, float[] scalings, str names, "
    "str form) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def form_of(storage: Storage, dequantize: Dequantize, merge: FourBits | None = None) -> str:
    """Return the name of a form, the same in every process; what dequantizes has to be the same for equal storages."""
    first = name = f"{storage.quantizer!r} {tuple(storage.shape)} {storage.dtype}"
    count = 1
    while name in FORMS and FORMS[name].quantizer != storage.quantizer:
        count += 1
        name = f"{first} {count}"
    FORMS[name] = Form(storage.quantizer, dequantize, storage.shape, merge)
    return name


def product(
    x: Tensor,
    bias: Tensor | None,
    base: Mapping[str, Tensor],
    pairs: Sequence[Tensor],
    scalings: Sequence[float],
    form: str,
) -> Tensor:
    """Return x (..., in_features) @ weightᵀ + bias + Σ scaling · (x Aᵀ) Bᵀ, where pairs are A and B in turn."""
    result: Tensor = torch.ops.lorakit.product.default(
        x, bias, list(base.values()), list(pairs), list(scalings), ",".join(base), form
    )
    return result


def _weight(stored: Sequence[Tensor], names: str, form: str, dtype: torch.dtype) -> Tensor:
    return FORMS[form].dequantize(dict(zip(names.split(","), stored, strict=True)), dtype)


@torch.library.impl(_LIBRARY, "product", "CompositeExplicitAutograd")
def _product(
    x: Tensor,
    bias: Tensor | None,
    stored: Sequence[Tensor],
    pairs: Sequence[Tensor],
    scalings: Sequence[float],
    names: str,
    form: str,
) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    weight = _weight(stored, names, form, x.dtype)
    result = functional.linear(rows, weight, None if bias is None else bias.to(x.dtype))
    for lora_A, lora_B, scaling in zip(pairs[::2], pairs[1::2], scalings, strict=True):
        result.addmm_(functional.linear(rows, lora_A.to(x.dtype)), lora_B.to(x.dtype).t(), alpha=scaling)
    return result.view(*x.shape[:-1], result.shape[1])


@torch.library.impl(_LIBRARY, "product_backward", "CompositeExplicitAutograd")
def _product_backward(
    gradient: Tensor,
    x: Tensor,
    stored: Sequence[Tensor],
    pairs: Sequence[Tensor],
    scalings: Sequence[float],
    names: str,
    form: str,
) -> list[Tensor]:
    wide = gradient.reshape(-1, gradient.shape[-1])
    rows = x.reshape(-1, x.shape[-1])
    of_x = wide @ _weight(stored, names, form, gradient.dtype)
    of_pairs = []
    for lora_A, lora_B, scaling in zip(pairs[::2], pairs[1::2], scalings, strict=True):
        of_thin = (wide @ lora_B.to(wide.dtype)).mul_(scaling)
        of_x.addmm_(of_thin, lora_A.to(wide.dtype))
        thin = functional.linear(rows, lora_A.to(x.dtype))
        of_pairs.append((of_thin.t() @ rows).to(lora_A.dtype))
        of_pairs.append((wide.t() @ thin).mul_(scaling).to(lora_B.dtype))
    return [of_x.view(x.shape), *of_pairs]


@torch.library.register_fake("lorakit::product", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _product_shaped(
    x: Tensor, bias: Tensor | None, stored: Any, pairs: Any, scalings: Any, names: str, form: str
) -> Tensor:
    return x.new_empty((*x.shape[:-1], FORMS[form].shape[0]))


@torch.library.register_fake("lorakit::product_backward", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _backward_shaped(
    gradient: Tensor, x: Tensor, stored: Any, pairs: Any, scalings: Any, names: str, form: str
) -> list[Tensor]:
    return [x.new_empty(x.shape), *(torch.empty_like(one, memory_format=torch.contiguous_format) for one in pairs)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, stored, pairs, *rest = inputs
    ctx.save_for_backward(x, *stored, *pairs)
    ctx.counts, ctx.rest = (len(stored), len(pairs)), rest
    ctx.bias_dtype = None if bias is None else bias.dtype


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    count, _ = ctx.counts
    x, *held = ctx.saved_tensors
    stored, pairs = held[:count], held[count:]
    of_x, *of_pairs = torch.ops.lorakit.product_backward.default(gradient, x, stored, pairs, *ctx.rest)
    of_bias = None
    if ctx.bias_dtype is not None:
        of_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0, dtype=ctx.bias_dtype)
    # of an empty list torch cannot tell that it holds no tensors
    of_scalings: list[None] | None = None if ctx.rest[0] else []
    return of_x, of_bias, [None] * len(stored), of_pairs, of_scalings, None, None


torch.library.register_autograd("lorakit::product", _gradients, setup_context=_keep, lib=_LIBRARY)
