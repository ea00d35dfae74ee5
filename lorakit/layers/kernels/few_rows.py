"""Products of a few rows with four-bit weights, for inference: weights are read once, packed as they are.

`lorakit::few_rows_4bit` is one kernel in CUDA C++ for up to 64 rows, and one before it where an adapter adds to the
product; elsewhere it dequantizes. Levels are rounded to the dtype of the inputs, as a dequantized weight is, and scales
multiply sums in fp32.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from lorakit.layers.kernels import fourbit
from lorakit.layers.kernels.low_rank import add_low_rank_, as_rows
from lorakit.layers.kernels.nvrtc import Kernel, NoCompilerError, available, bits_of, compiled
from lorakit.values import LowRank, Storage

if TYPE_CHECKING:
    from lorakit.hooks.protocols import Linear

logger = logging.getLogger("lorakit")

# rows of inputs; above them dequantizing pays, and one kernel's sums no longer fit its registers
MOST_ROWS = 64
# weights that a warp multiplies before their sum is scaled
PIECE = 64
# of tensor cores: rows of inputs and of outputs that are multiplied at once
ROW_TILE, OUT_TILE = 8, 16
THREADS = 256
# tensor cores multiply bf16 since
CAPABILITY = (8, 0)

_DTYPES = (torch.bfloat16, torch.float16)

_LIBRARY = torch.library.Library("lorakit", "FRAGMENT")
_LIBRARY.define(
    "few_rows_4bit(Tensor x, Tensor packed, Tensor absmax, Tensor? nested_absmax, Tensor? nested_offset, Tensor? bias, "
    "Tensor? lora_A, Tensor? lora_B, float scaling, int blocksize, str quant_type, int[] shape) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def few_rows(storage: Storage, otherwise: Linear) -> Linear:
    """Return what multiplies few rows with a stored weight by one kernel, and others as `otherwise` does."""
    if not fits(storage):
        return otherwise
    quantizer: Any = storage.quantizer
    form = (quantizer.blocksize, quantizer.name, list(storage.shape))
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
    result: Tensor = torch.ops.lorakit.few_rows_4bit.default(
        rows,
        base["packed"],
        base["absmax"],
        base.get("nested_absmax"),
        base.get("nested_offset"),
        None if bias is None else bias.to(rows.dtype),
        None if inside is None else inside.A,
        None if inside is None else inside.B,
        0.0 if inside is None else inside.scaling,
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
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    bias: Tensor | None,
    lora_A: Tensor | None,
    lora_B: Tensor | None,
    scaling: float,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
) -> Tensor:
    tensors = {"packed": packed, "absmax": absmax}
    if nested_absmax is not None and nested_offset is not None:
        tensors |= {"nested_absmax": nested_absmax, "nested_offset": nested_offset}
    result = functional.linear(x, fourbit.dequantize_4bit(tensors, blocksize, quant_type, shape, x.dtype), bias)
    if lora_A is None or lora_B is None:
        return result
    return add_low_rank_(result, x, [LowRank(lora_A, lora_B, scaling, 0.0)])


@torch.library.register_fake("lorakit::few_rows_4bit", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _shaped(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    bias: Tensor | None,
    lora_A: Tensor | None,
    lora_B: Tensor | None,
    scaling: float,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
) -> Tensor:
    return x.new_empty((x.shape[0], shape[0]))


@torch.library.impl(_LIBRARY, "few_rows_4bit", "CUDA")
def _in_one_kernel(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    bias: Tensor | None,
    lora_A: Tensor | None,
    lora_B: Tensor | None,
    scaling: float,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
) -> Tensor:
    arguments = (x, packed, absmax, nested_absmax, nested_offset, bias, lora_A, lora_B, scaling, blocksize, quant_type)
    if not _readable(x, packed, shape, blocksize):
        return _dequantized(*arguments, shape)
    wide = lora_A is not None and lora_A.dtype == torch.float32
    tiles, out_tiles = tiling(x.shape[0], shape[0])
    try:
        kernels = _kernels(tiles, out_tiles, x.dtype, nested_absmax is not None, wide, x.device)
    except NoCompilerError as error:
        _say_once(str(error))
        return _dequantized(*arguments, shape)
    x = x.contiguous()
    x = x.clone() if x.data_ptr() % 16 else x
    rows, (n_out, n_in) = x.shape[0], shape
    result = x.new_empty((rows, n_out))
    thin, rank = None, 0
    # kernels are launched on the current device, wherever the tensors lie: a model may be split over several
    with torch.cuda.device(x.device):
        if lora_A is not None and lora_B is not None and len(lora_A):
            lora_A, lora_B, rank = lora_A.contiguous(), lora_B.contiguous(), len(lora_A)
            thin = x.new_empty((rows, rank), dtype=torch.float32)
            kernels["thin_product"].launch(
                (rank, -(-rows // ROW_TILE), 1), THREADS, (x, lora_A, thin, rows, n_in, rank)
            )
        kernels["few_rows"].launch(
            (-(-n_out // (OUT_TILE * out_tiles)), 1, 1),
            THREADS,
            (
                x, packed, absmax, nested_absmax, nested_offset,
                fourbit.levels(fourbit.DOUBLE, x.device), pairs(quant_type, x.dtype, x.device), bias, thin, lora_B,
                result, rows, n_out, n_in, (blocksize // PIECE).bit_length() - 1, rank, bits_of(scaling),
            ),
        )  # fmt: skip
    return result


def _readable(x: Tensor, packed: Tensor, shape: Sequence[int], blocksize: int) -> bool:
    return (
        0 < x.shape[0] <= MOST_ROWS
        and x.dtype in _DTYPES
        and packed.is_contiguous()
        and packed.data_ptr() % 8 == 0
        and shape[0] > 0
        and shape[1] > 0
        and shape[1] % PIECE == 0
        and blocksize % PIECE == 0
    )


def tiling(rows: int, n_out: int) -> tuple[int, int]:
    """Return how many tiles of 8 rows and of 16 outputs a block of the kernel multiplies."""
    tiles = 1 << max(0, (rows - 1) // ROW_TILE).bit_length()
    return tiles, 1


_PAIRS: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}


def pairs(quant_type: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the two levels of each byte (256,) as 16 bits each, that of its high half in the low bits."""
    key = (quant_type, dtype, device)
    if key not in _PAIRS:
        levels = fourbit.levels(quant_type, torch.device("cpu")).to(dtype).view(torch.int16).int() & 0xFFFF
        byte = torch.arange(256)
        _PAIRS[key] = (levels[byte >> 4] | levels[byte & 15] << 16).int().to(device)
    return _PAIRS[key]


@functools.cache
def _kernels(
    tiles: int, out_tiles: int, dtype: torch.dtype, doubled: bool, wide: bool, device: torch.device
) -> Mapping[str, Kernel]:
    source = Path(__file__).with_suffix(".cu").read_text()
    defines = (
        f"ROW_TILES={tiles}",
        f"OUT_TILES={out_tiles}",
        f"HALF={int(dtype == torch.float16)}",
        f"DOUBLED={int(doubled)}",
        f"WIDE={int(wide)}",
    )
    return {name: compiled(source, name, defines, device) for name in ("few_rows", "thin_product")}


@functools.cache
def _say_once(why: str) -> None:
    logger.info("few rows: four-bit weights are dequantized for each product, since %s", why)
