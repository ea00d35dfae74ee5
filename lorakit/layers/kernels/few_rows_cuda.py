"""The launch of the kernels that multiply few rows: which one, on how many blocks, over what memory."""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lorakit.layers.kernels import fourbit
from lorakit.layers.kernels.nvrtc import Argument, Kernel, compiled

# rows of inputs; above them dequantizing pays, and one kernel's sums no longer fit its registers
MOST_ROWS = 64
# weights that share an input in one launch
MEMBERS = 4
# weights that a warp multiplies before their sum is scaled
PIECE = 64
# pieces that a warp reads at once
GROUP = 4
# of tensor cores: rows of inputs that are multiplied at once; of a block of the thin product: rows of A
ROW_TILE, THIN_ROWS = 8, 16
THREADS = 256
# outputs of a tile, by kernel
OUTPUTS = {"few_rows": 16, "several_rows": 128}
# bytes: the table of pairs, four stages of inputs, the levels of doubled scales
SHARED = 4 * (256 * 32 + 4 * 2048 + 256)
# a member of `Members` in the sources, and what begins after every tile
_MEMBER = struct.Struct("9Q4ifi")
_NEVER = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Member:
    """A weight and what is added to its product; B and A come together, or neither."""

    packed: Tensor
    absmax: Tensor
    nested_absmax: Tensor | None
    nested_offset: Tensor | None
    bias: Tensor | None
    lora_A: Tensor | None
    lora_B: Tensor | None
    scaling: float
    n_out: int

    @property
    def rank(self) -> int:
        return 0 if self.lora_A is None else len(self.lora_A)


@dataclass(frozen=True, slots=True)
class Grid:
    """How the blocks of a launch are dealt out: those of thin products first, then `splits` for each tile of outputs.

    Blocks without splits go on to other tiles; `main` is how many there are of them.
    """

    kernel: str
    row_tiles: int
    thin: int
    tiles: int
    splits: int
    main: int


def kernel_of(rows: int) -> tuple[str, int]:
    """Return which kernel multiplies so many rows, and how many tiles of 8 rows it is compiled for."""
    tiles = 1 << max(0, (rows - 1) // ROW_TILE).bit_length()
    return ("few_rows" if tiles == 1 else "several_rows"), tiles


def grid(rows: int, heights: Sequence[int], ranks: Sequence[int], n_in: int, slots: int) -> Grid:
    """Return the blocks for outputs of these heights; `slots` is how many run at once."""
    kernel, row_tiles = kernel_of(rows)
    thin = sum(_thin_blocks(rank, row_tiles) for rank in ranks)
    tiles = sum(-(-height // OUTPUTS[kernel]) for height in heights)
    if kernel == "few_rows":
        return Grid(kernel, row_tiles, thin, tiles, 1, min(tiles, max(slots - thin, slots // 2, 1)))
    groups = -(-n_in // (PIECE * GROUP))
    each = -(-groups // min(groups, max(1, (slots - thin) // tiles)))
    splits = -(-groups // each)
    return Grid(kernel, row_tiles, thin, tiles, splits, tiles * splits)


def _thin_blocks(rank: int, row_tiles: int) -> int:
    return -(-rank // THIN_ROWS) * max(1, row_tiles // 2)


def launch(x: Tensor, members: Sequence[Member], blocksize: int, quant_type: str) -> list[Tensor]:
    """Return the products (rows, n_out) of x (rows, n_in), which begins at a multiple of 16 bytes, on its device.

    Raises: NoCompilerError.
    """
    (rows, n_in), doubled = x.shape, members[0].nested_absmax is not None
    wide = any(one.lora_A is not None and one.lora_A.dtype == torch.float32 for one in members)
    name, row_tiles = kernel_of(rows)
    kernel = _kernel(name, row_tiles, x.dtype, doubled, wide, n_in % (PIECE * GROUP) == 0, x.device)
    shared = SHARED if name == "several_rows" else 0
    heights, ranks = [one.n_out for one in members], [one.rank for one in members]
    how = grid(rows, heights, ranks, n_in, slots(kernel, shared, x.device))
    results = [x.new_empty((rows, height)) for height in heights]
    # so that each begins at a multiple of 16 bytes
    thin = [x.new_empty((rows, -(-rank // 4) * 4), dtype=torch.float32) for rank in ranks]
    levels = fourbit.levels(fourbit.DOUBLE, x.device)
    arguments: list[Argument] = [_packed(members, thin, results, how), x, levels, pairs(quant_type, x.dtype, x.device)]
    arguments.append(_counters(members[0].packed, how.tiles))
    if name == "several_rows":
        size = how.tiles * how.splits * row_tiles * 4 * THREADS if how.splits > 1 else 0
        arguments.append(x.new_empty(size, dtype=torch.float32))
    shift = (blocksize // PIECE).bit_length() - 1
    last = how.tiles if name == "few_rows" else how.splits
    kernel.launch((how.thin + how.main, 1, 1), THREADS, (*arguments, rows, n_in, shift, last, how.thin), shared)
    return results


def _packed(members: Sequence[Member], thin: Sequence[Tensor], results: Sequence[Tensor], how: Grid) -> bytes:
    packed, tile, block = b"", 0, 0
    for one, own, result in zip(members, thin, results, strict=True):
        tensors = (
            one.packed, one.absmax, one.nested_absmax, one.nested_offset, one.bias, one.lora_A, one.lora_B,
            own if one.rank else None, result,
        )  # fmt: skip
        places = (0 if tensor is None else tensor.data_ptr() for tensor in tensors)
        packed += _MEMBER.pack(*places, one.n_out, tile, block, one.rank, one.scaling, 0)
        tile += -(-one.n_out // OUTPUTS[how.kernel])
        block += _thin_blocks(one.rank, how.row_tiles)
    return packed + _MEMBER.pack(*[0] * 9, 0, _NEVER, _NEVER, 0, 0.0, 0) * (MEMBERS - len(members))


_PAIRS: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}


def pairs(quant_type: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the two levels of each byte (256,) as 16 bits each, that of its high half in the low bits."""
    key = (quant_type, dtype, device)
    if key not in _PAIRS:
        levels = fourbit.levels(quant_type, torch.device("cpu")).to(dtype).view(torch.int16).int() & 0xFFFF
        byte = torch.arange(256)
        _PAIRS[key] = (levels[byte >> 4] | levels[byte & 15] << 16).int().to(device)
    return _PAIRS[key]


_COUNTERS: dict[tuple[int, int, torch.device], Tensor] = {}


def _counters(packed: Tensor, tiles: int) -> Tensor:
    """Return zeros, as a launch leaves them: those of a weight on a stream, where no two launches run at once."""
    key = (packed.data_ptr(), torch.cuda.current_stream().cuda_stream, packed.device)
    if key not in _COUNTERS or len(_COUNTERS[key]) < tiles + 2:
        _COUNTERS[key] = torch.zeros(tiles + 2, dtype=torch.int32, device=packed.device)
    return _COUNTERS[key]


@functools.cache
def slots(kernel: Kernel, shared: int, device: torch.device) -> int:
    """Return how many blocks of a kernel a device runs at once."""
    return kernel.blocks(THREADS, shared) * int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def _kernel(
    name: str, row_tiles: int, dtype: torch.dtype, doubled: bool, wide: bool, even: bool, device: torch.device
) -> Kernel:
    here = Path(__file__).parent
    source = (here / "four_bits.cuh").read_text() + (here / f"{name}.cu").read_text()
    defines: Mapping[str, int] = {
        "ROW_TILES": row_tiles,
        "HALF": int(dtype == torch.float16),
        "DOUBLED": int(doubled),
        "WIDE": int(wide),
        "EVEN": int(even),
    }
    return compiled(source, name, [f"{one}={value}" for one, value in defines.items()], device)
