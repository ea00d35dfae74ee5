"""Products of a few rows with four-bit weights, for inference: weights are read once, packed as they are.

`lorakit::few_rows_4bit` is one kernel in CUDA C++ for up to 64 rows, with what adapters add and for all weights that
multiply the same rows; elsewhere it dequantizes. Levels are rounded to the dtype of the inputs, as a dequantized weight
is, and scales multiply sums in fp32.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from lorakit.layers.kernels import fourbit
from lorakit.layers.kernels.few_rows_cuda import MEMBERS, MOST_ROWS, PIECE, Member, launch, pairs
from lorakit.layers.kernels.low_rank import add_low_rank_, as_rows
from lorakit.layers.kernels.nvrtc import NoCompilerError, available
from lorakit.values import LowRank, Storage

if TYPE_CHECKING:
    from lorakit.hooks.protocols import Linear

logger = logging.getLogger("lorakit")

# tensor cores multiply bf16 since
CAPABILITY = (8, 0)

_DTYPES = (torch.bfloat16, torch.float16)

_LIBRARY = torch.library.Library("lorakit", "FRAGMENT")
_LIBRARY.define(
    "few_rows_4bit(Tensor x, Tensor[] packed, Tensor[] absmax, Tensor[] nested_absmax, Tensor[] nested_offset, "
    "Tensor?[] biases, Tensor?[] lora_A, Tensor?[] lora_B, float[] scalings, int[] heights, int blocksize, "
    "str quant_type) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def few_rows(storage: Storage, otherwise: Linear) -> Linear:
    """Return what multiplies few rows with a stored weight by one kernel, and others as `otherwise` does."""
    if not fits(storage):
        return otherwise
    quantizer: Any = storage.quantizer
    form = ([storage.shape[0]], quantizer.blocksize, quantizer.name)
    for dtype in _DTYPES:
        pairs(quantizer.name, dtype, storage.device)

    def linear(x: Tensor, base: Mapping[str, Tensor], bias: Tensor | None, low_rank: Sequence[LowRank]) -> Tensor:
        if torch.is_autocast_enabled("cuda"):
            x = x.to(torch.get_autocast_dtype("cuda"))
        if not _takes(x, base, bias, low_rank):
            return otherwise(x, base, bias, low_rank)
        rows = as_rows(x)
        with torch.autocast("cuda", enabled=False):
            result = _product(rows, base, bias, low_rank, form)
        return result if x.ndim == 2 else result.view(*x.shape[:-1], result.shape[1])

    return linear


def fits(storage: Storage) -> bool:
    """Return whether the kernel reads weights that are stored so, there."""
    quantizer: Any = storage.quantizer
    return (
        storage.device.type == "cuda"
        and available()
        and torch.cuda.get_device_capability(storage.device) >= CAPABILITY
        and storage.shape[0] > 0
        and storage.shape[1] > 0
        and storage.shape[1] % PIECE == 0
        and quantizer.blocksize % PIECE == 0
    )


def _takes(x: Tensor, base: Mapping[str, Tensor], bias: Tensor | None, low_rank: Sequence[LowRank]) -> bool:
    trains = x.requires_grad or (bias is not None and bias.requires_grad) or any(map(_trains, low_rank))
    return (
        x.dtype in _DTYPES
        and x.is_cuda
        and 0 < x.shape[:-1].numel() <= MOST_ROWS
        and not (trains and torch.is_grad_enabled())
        # other classes of tensors multiply by rules of their own
        and (torch.compiler.is_compiling() or type(base["packed"]) in _IN_MEMORY)
        and not torch._C._are_functorch_transforms_active()
    )


_IN_MEMORY = (torch.nn.Parameter, Tensor)


def _trains(one: LowRank) -> bool:
    return one.A.requires_grad or one.B.requires_grad or (isinstance(one.scaling, Tensor) and one.scaling.requires_grad)


def _product(
    rows: Tensor, base: Mapping[str, Tensor], bias: Tensor | None, low_rank: Sequence[LowRank], form: tuple[Any, ...]
) -> Tensor:
    inside, after = (low_rank[0], low_rank[1:]) if low_rank and _inside(low_rank[0], rows) else (None, low_rank)
    doubled = "nested_absmax" in base
    (result,) = torch.ops.lorakit.few_rows_4bit.default(
        rows,
        [base["packed"]],
        [base["absmax"]],
        [base["nested_absmax"]] if doubled else [],
        [base["nested_offset"]] if doubled else [],
        [None if bias is None else bias.to(rows.dtype)],
        [None if inside is None else inside.A],
        [None if inside is None else inside.B],
        [0.0 if inside is None else inside.scaling],
        *form,
    )
    return add_low_rank_(result, rows, after) if after else result


def _inside(one: LowRank, rows: Tensor) -> bool:
    """Return whether the kernel adds this itself."""
    return (
        not one.dropout
        and not isinstance(one.scaling, Tensor)
        and one.A.dtype == one.B.dtype
        and one.A.dtype in (rows.dtype, torch.float32)
    )


@torch.library.impl(_LIBRARY, "few_rows_4bit", "CompositeExplicitAutograd")
def _dequantized(
    x: Tensor,
    packed: Sequence[Tensor],
    absmax: Sequence[Tensor],
    nested_absmax: Sequence[Tensor],
    nested_offset: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    lora_A: Sequence[Tensor | None],
    lora_B: Sequence[Tensor | None],
    scalings: Sequence[float],
    heights: Sequence[int],
    blocksize: int,
    quant_type: str,
) -> list[Tensor]:
    members = _members(packed, absmax, nested_absmax, nested_offset, biases, lora_A, lora_B, scalings, heights)
    return [_by_dequantizing(x, one, blocksize, quant_type) for one in members]


def _members(
    packed: Sequence[Tensor],
    absmax: Sequence[Tensor],
    nested_absmax: Sequence[Tensor],
    nested_offset: Sequence[Tensor],
    *others: Sequence[Any],
) -> list[Member]:
    none = [None] * len(packed)
    nested = nested_absmax or none, nested_offset or none
    return [Member(*one) for one in zip(packed, absmax, *nested, *others, strict=True)]


def _by_dequantizing(x: Tensor, one: Member, blocksize: int, quant_type: str) -> Tensor:
    tensors = {"packed": one.packed, "absmax": one.absmax}
    if one.nested_absmax is not None and one.nested_offset is not None:
        tensors |= {"nested_absmax": one.nested_absmax, "nested_offset": one.nested_offset}
    weight = fourbit.dequantize_4bit(tensors, blocksize, quant_type, (one.n_out, x.shape[1]), x.dtype)
    result = functional.linear(x, weight, one.bias)
    if one.lora_A is None or one.lora_B is None:
        return result
    return add_low_rank_(result, x, [LowRank(one.lora_A, one.lora_B, one.scaling, 0.0)])


@torch.library.register_fake("lorakit::few_rows_4bit", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _shaped(x: Tensor, packed: Any, *others: Any) -> list[Tensor]:
    heights = others[-3]
    return [x.new_empty((x.shape[0], height)) for height in heights]


@torch.library.impl(_LIBRARY, "few_rows_4bit", "CUDA")
def _in_one_kernel(
    x: Tensor,
    packed: Sequence[Tensor],
    absmax: Sequence[Tensor],
    nested_absmax: Sequence[Tensor],
    nested_offset: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    lora_A: Sequence[Tensor | None],
    lora_B: Sequence[Tensor | None],
    scalings: Sequence[float],
    heights: Sequence[int],
    blocksize: int,
    quant_type: str,
) -> list[Tensor]:
    members = _members(packed, absmax, nested_absmax, nested_offset, biases, lora_A, lora_B, scalings, heights)
    if not all(_readable(x, one, blocksize) for one in members):
        return [_by_dequantizing(x, one, blocksize, quant_type) for one in members]
    # kernels read words of 16 bytes
    x, members = _aligned(x), [_with_aligned_factors(one) for one in members]
    results: list[Tensor] = []
    # kernels are launched on the current device, wherever the tensors lie: a model may be split over several
    with torch.cuda.device(x.device):
        try:
            for together in _launches(members):
                results += launch(x, together, blocksize, quant_type)
        except NoCompilerError as error:
            _say_once(str(error))
            return [_by_dequantizing(x, one, blocksize, quant_type) for one in members]
    return results


def _launches(members: Sequence[Member]) -> list[Sequence[Member]]:
    return [members[first : first + MEMBERS] for first in range(0, len(members), MEMBERS)]


def _with_aligned_factors(one: Member) -> Member:
    if one.lora_A is None or one.lora_B is None or not len(one.lora_A):
        return replace(one, lora_A=None, lora_B=None)
    return replace(one, lora_A=_aligned(one.lora_A), lora_B=_aligned(one.lora_B))


def _aligned(tensor: Tensor) -> Tensor:
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def _readable(x: Tensor, one: Member, blocksize: int) -> bool:
    return (
        0 < x.shape[0] <= MOST_ROWS
        and x.dtype in _DTYPES
        and one.packed.is_contiguous()
        and one.packed.data_ptr() % 8 == 0
        and one.n_out > 0
        and x.shape[1] > 0
        and x.shape[1] % PIECE == 0
        and blocksize % PIECE == 0
    )


@functools.cache
def _say_once(why: str) -> None:
    logger.info("few rows: four-bit weights are dequantized for each product, since %s", why)
