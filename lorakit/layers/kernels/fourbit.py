"""Products with weights in bitsandbytes' four-bit layout: dequantizing is one op, doubled scales or not.

`lorakit::dequantize_nested_4bit` undoes double quantization on the way: one Triton kernel on CUDA where triton is
installed, bitsandbytes' two kernels elsewhere; the bits are the same. Gradients come from the product around it.
Source: Dettmers et al. 2023, "QLoRA", arXiv:2305.14314, section 3.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import bitsandbytes.functional as bnb
import torch
from torch import Tensor

from lorakit.layers.kernels.dequantized import linear_of
from lorakit.layers.kernels.fourbit_cpu import writer
from lorakit.layers.kernels.product import FourBits
from lorakit.values import Storage

if TYPE_CHECKING:
    from lorakit.hooks.protocols import Linear

# bitsandbytes quantizes the scales in blocks of this many
NESTED_BLOCKSIZE = 256

# constants on each device: the 16 levels of a four-bit format by its name, the 256 of doubled scales by DOUBLE; no
# module has to hold them, move them and send them around
_LEVELS: dict[tuple[str, torch.device], Tensor] = {}
DOUBLE = "double"

_IN_MEMORY = (torch.nn.Parameter, Tensor)

_LIBRARY = torch.library.Library("lorakit", "FRAGMENT")
_LIBRARY.define(
    "dequantize_nested_4bit(Tensor packed, Tensor absmax, Tensor nested_absmax, Tensor nested_offset, int blocksize, "
    "str quant_type, int[] shape, ScalarType dtype) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def levels(name: str, device: torch.device) -> Tensor:
    """Return what codes stand for, which is made once a device: when a layer is built or moved there."""
    if (name, device) not in _LEVELS:
        made = bnb.create_dynamic_map() if name == DOUBLE else bnb.get_4bit_type(name, device="cpu")
        _LEVELS[name, device] = made.to(device)
    return _LEVELS[name, device]


def four_bit(storage: Storage) -> Linear:
    """Return what multiplies with a weight that `nf4` or `fp4` stored."""
    quantizer: Any = storage.quantizer
    if quantizer.double and storage.device.type != "meta":
        levels(DOUBLE, storage.device)
        levels(quantizer.name, storage.device)
    form = (quantizer.blocksize, quantizer.name, list(storage.shape), storage.dtype)

    write = writer(storage.shape, *form[:2], storage.dtype) if storage.device.type == "cpu" else None

    def dequantize(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        packed = tensors["packed"]
        # compilers, and what stands for tensors without memory, know the ops alone
        if write is None or torch.compiler.is_compiling() or type(packed) not in _IN_MEMORY or not packed.is_cpu:
            weight = dequantize_4bit(tensors, *form)
        else:
            weight = write(packed, _scales(tensors) if quantizer.double else tensors["absmax"])
        return weight if weight.dtype == dtype else weight.to(dtype)

    from lorakit.layers.kernels.few_rows import few_rows

    return few_rows(storage, linear_of(storage, dequantize, FourBits(quantizer.name, quantizer.blocksize)))


def dequantize_4bit(
    tensors: Mapping[str, Tensor], blocksize: int, quant_type: str, shape: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """Return the weight of this shape from `packed` and `absmax`, which is doubled if `nested_absmax` is there."""
    packed, absmax = tensors["packed"], tensors["absmax"]
    if "nested_absmax" not in tensors:
        return _dequantized(packed, absmax, blocksize, quant_type, shape, dtype)
    weight: Tensor = torch.ops.lorakit.dequantize_nested_4bit.default(
        packed, absmax, tensors["nested_absmax"], tensors["nested_offset"], blocksize, quant_type, shape, dtype
    )
    return weight


@torch.library.impl(_LIBRARY, "dequantize_nested_4bit", "CompositeExplicitAutograd")
def _in_two_steps(
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor,
    nested_offset: Tensor,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    if not absmax.numel():
        return packed.new_empty(shape, dtype=dtype)
    doubled = {"absmax": absmax, "nested_absmax": nested_absmax, "nested_offset": nested_offset}
    return _dequantized(packed, _scales(doubled), blocksize, quant_type, shape, dtype)


def _scales(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the scales (blocks,) that are doubled."""
    absmax = tensors["absmax"]
    scales: Tensor = torch.ops.bitsandbytes.dequantize_blockwise.default(
        absmax, tensors["nested_absmax"], levels(DOUBLE, absmax.device), NESTED_BLOCKSIZE, torch.float32
    )
    return scales.add_(tensors["nested_offset"])


def _dequantized(
    packed: Tensor, absmax: Tensor, blocksize: int, quant_type: str, shape: Sequence[int], dtype: torch.dtype
) -> Tensor:
    if not packed.numel():
        # bitsandbytes ends the process over an empty tensor on CUDA
        return packed.new_empty(shape, dtype=dtype)
    # bitsandbytes 0.50 gives weights of rows that are no whole blocks wrong scales on processors with AVX-512
    lies = shape
    if shape[1] % blocksize:
        count = shape[0] * shape[1]
        lies = (1, count) if count % blocksize else (count // blocksize, blocksize)
    weight: Tensor = torch.ops.bitsandbytes.dequantize_4bit.default(packed, absmax, blocksize, quant_type, lies, dtype)
    return weight if lies is shape else weight.view(shape)


@torch.library.register_fake("lorakit::dequantize_nested_4bit", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _shaped(
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor,
    nested_offset: Tensor,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    return packed.new_empty(shape, dtype=dtype)


if torch.cuda.is_available() and importlib.util.find_spec("triton"):
    from lorakit.layers.kernels import nested_triton

    @torch.library.impl(_LIBRARY, "dequantize_nested_4bit", "CUDA")
    def _in_one_kernel(
        packed: Tensor,
        absmax: Tensor,
        nested_absmax: Tensor,
        nested_offset: Tensor,
        blocksize: int,
        quant_type: str,
        shape: Sequence[int],
        dtype: torch.dtype,
    ) -> Tensor:
        tables = levels(quant_type, packed.device), levels(DOUBLE, packed.device)
        return nested_triton.dequantize(packed, absmax, nested_absmax, nested_offset, *tables, blocksize, shape, dtype)
