"""Four-bit weights on a CPU, dequantized for one product into memory that the product before has left in the cache.

bitsandbytes' op takes new memory for every weight, and a product with it takes up to a fifth longer. Its function in C
writes where it is told to, and is called as the op calls it.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable

import bitsandbytes
import torch
from bitsandbytes.cextension import lib
from torch import Tensor

# the function's arguments are known of these versions
VERSIONS = "0.50."
# bytes of a weight: larger ones leave the cache before they are multiplied, and their memory would be kept for nothing
LARGEST = 2**24
# bitsandbytes has another way for larger blocks on some processors
LARGEST_BLOCK = 1024

_SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

Write = Callable[[Tensor, Tensor], Tensor]


class _Memory(threading.local):
    """Memory of each thread for one weight at a time."""

    def __init__(self) -> None:
        with torch.inference_mode(False):
            self.bytes = torch.empty(0, dtype=torch.uint8)

    def lent(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Return a matrix (rows, columns), which is there until the next is asked for."""
        size = rows * columns * dtype.itemsize
        if len(self.bytes) < size:
            with torch.inference_mode(False):
                self.bytes = torch.empty(size, dtype=torch.uint8)
        return self.bytes[:size].view(dtype).view(rows, columns)


_MEMORY = _Memory()


def writer(shape: tuple[int, int], blocksize: int, quant_type: str, dtype: torch.dtype) -> Write | None:
    """Return what makes a weight (out_features, in_features) of `packed` and its scales, for one product.

    The next call of the same thread writes over it. None where bitsandbytes has no such function for the weight.
    """
    rows, columns = shape
    name = f"cdequantize_blockwise_cpu_{quant_type}_{_SHORT.get(dtype)}"
    # rows that are no whole blocks get wrong scales
    fits = columns % blocksize == 0 and blocksize <= LARGEST_BLOCK and 0 < rows * columns * dtype.itemsize <= LARGEST
    if not fits or not bitsandbytes.__version__.startswith(VERSIONS) or not hasattr(getattr(lib, "_lib", None), name):
        return None
    function = getattr(lib, name)
    sizes = [ctypes.c_longlong(size) for size in (blocksize, rows, columns)]

    def write(packed: Tensor, absmax: Tensor) -> Tensor:
        packed, absmax = packed.contiguous(), absmax.float().contiguous()
        weight = _MEMORY.lent(rows, columns, dtype)
        function(*(ctypes.c_void_p(tensor.data_ptr()) for tensor in (packed, absmax, weight)), *sizes)
        return weight

    return write
