"""The names of dtypes: torch's, those of a spec, and those in safetensors files. torch itself is not imported here."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# the dtypes that adapters and merged weights come in, as a spec says them and as torch names them
LONG = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
SHORT = {long: short for short, long in LONG.items()}
# what models hold floating weights in, and what of it is slow on some hardware
FLOATS = ("bfloat16", "float16", "float32", "float64")
HALVES = FLOATS[:2]
# of bfloat16's 8 bits a weight keeps none for a step that is this many times smaller
BF16_STEPS = 512
STORED = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2": "float8_e5m2", "F8_E5M2FNUZ": "float8_e5m2fnuz", "C64": "complex64",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16",
    "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


@functools.cache
def name_of(dtype: torch.dtype) -> str:
    """Return torch's name of a dtype, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def short_name(name: str) -> str:
    """Return a spec's name of a dtype that torch calls so: `bf16`; one that specs do not know keeps torch's."""
    return SHORT.get(name, name)


@functools.cache
def itemsize(name: str) -> int:
    """Return the bytes of one element: torch names a dtype by its bits, as in `bfloat16` and `float8_e4m3fn`."""
    bits = re.search(r"\d+", name)
    return max(int(bits.group()) // 8, 1) if bits else 1


@functools.cache
def dtype_of(name: str) -> torch.dtype:
    """Return the dtype that torch calls so. Raises: ValueError."""
    import torch

    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"no dtype is called {name!r}")
    return found


def stored_dtype(code: str) -> torch.dtype:
    """Return the dtype that safetensors calls so, such as `BF16`. Raises: ValueError."""
    if code not in STORED:
        raise ValueError(f"no dtype of torch is stored as {code!r}")
    return dtype_of(STORED[code])
