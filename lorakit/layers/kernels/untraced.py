"""The product by dequantizing for quantizers that compilers cannot look into: what dequantizes is one op to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorakit.layers.kernels.dequantized import linear_of
from lorakit.values import QuantizedWeight, Storage

if TYPE_CHECKING:
    from lorakit.hooks.protocols import Linear, Quantizer

# every quantizer that an op has been made for, by the number that the op is given: ops take no objects
_QUANTIZERS: list[Quantizer] = []

_LIBRARY = torch.library.Library("lorakit", "FRAGMENT")
_LIBRARY.define(
    "dequantize(Tensor[] tensors, str names, int quantizer, int[] shape, ScalarType dtype) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def untraced(storage: Storage) -> Linear:
    """Return what multiplies with a weight by dequantizing it as its quantizer does, which no compiler looks into."""
    if storage.quantizer not in _QUANTIZERS:
        _QUANTIZERS.append(storage.quantizer)
    index, shape = _QUANTIZERS.index(storage.quantizer), list(storage.shape)

    def dequantize(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        weight: Tensor = torch.ops.lorakit.dequantize.default(
            list(tensors.values()), ",".join(tensors), index, shape, storage.dtype
        )
        return weight.to(dtype)

    return linear_of(storage, dequantize)


@torch.library.impl(_LIBRARY, "dequantize", "CompositeExplicitAutograd")
def _dequantize(
    tensors: Sequence[Tensor], names: str, quantizer: int, shape: Sequence[int], dtype: torch.dtype
) -> Tensor:
    held = dict(zip(names.split(","), tensors, strict=True))
    weight = _QUANTIZERS[quantizer].dequantize(QuantizedWeight(held, (shape[0], shape[1]), dtype))
    # an op returns memory of its own
    return weight.clone() if any(weight.data_ptr() == tensor.data_ptr() for tensor in tensors) else weight


@torch.library.register_fake("lorakit::dequantize", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _shaped(tensors: Sequence[Tensor], names: str, quantizer: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return tensors[0].new_empty(shape, dtype=dtype)
