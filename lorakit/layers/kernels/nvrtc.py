"""Kernels in CUDA C++, compiled on the machine that runs them by the NVRTC that torch brings.

torch's own function for it asks for an installed CUDA toolkit, and passes numbers otherwise in each version.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# what is passed: a tensor's address, a whole number of 32 bits, or a struct's bytes
Argument = Tensor | int | bytes | None
# of the driver's interface
_LARGEST_SHARED = 8


class NoCompilerError(RuntimeError):
    """There is no NVRTC, or it refuses a source."""


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """A compiled kernel of one device; `module` keeps it loaded."""

    function: ctypes.c_void_p
    module: ctypes.c_void_p

    def launch(self, grid: tuple[int, int, int], threads: int, arguments: Sequence[Argument], shared: int = 0) -> None:
        """Queue it on the current stream, with so many bytes of shared memory that it does not name itself.

        Tensors lie on the current device.
        """
        held = [_passed(one) for one in arguments]
        pointers = (ctypes.c_void_p * len(held))(*(ctypes.cast(ctypes.byref(one), ctypes.c_void_p) for one in held))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        _check(_driver().cuLaunchKernel(self.function, *grid, threads, 1, 1, shared, stream, pointers, None))

    def blocks(self, threads: int, shared: int = 0) -> int:
        """Return how many blocks run on one multiprocessor at once, with this shared memory, which is allowed then."""
        count = ctypes.c_int()
        if shared:
            _check(_driver().cuFuncSetAttribute(self.function, _LARGEST_SHARED, shared))
        _check(
            _driver().cuOccupancyMaxActiveBlocksPerMultiprocessor(
                ctypes.byref(count), self.function, threads, ctypes.c_size_t(shared)
            )
        )
        return count.value


def compiled(source: str, name: str, defines: Sequence[str], device: torch.device) -> Kernel:
    """Return the kernel `name`, extern "C", of a source for a device. Raises: NoCompilerError."""
    major, minor = torch.cuda.get_device_capability(device)
    options = (f"--gpu-architecture=sm_{major}{minor}", "--std=c++17", *(f"-D{one}" for one in defines))
    binary = _binary(source, options)
    with torch.cuda.device(device):
        # makes the context that the driver's functions work in
        torch.cuda.current_stream().query()
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        _check(_driver().cuModuleLoadData(ctypes.byref(module), binary))
        _check(_driver().cuModuleGetFunction(ctypes.byref(function), module, name.encode()))
    return Kernel(function, module)


def bits_of(number: float) -> int:
    """Return the bits of a number in fp32, as a whole number, which is what kernels are passed."""
    (bits,) = struct.unpack("<i", struct.pack("<f", number))
    return int(bits)


def _passed(argument: Argument) -> Any:
    if argument is None:
        return ctypes.c_void_p(0)
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, bytes):
        return ctypes.create_string_buffer(argument, len(argument))
    return ctypes.c_int(argument)


@functools.cache
def _binary(source: str, options: Sequence[str]) -> bytes:
    library, program = _compiler(), ctypes.c_void_p()
    if library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"lorakit.cu", 0, None, None):
        raise NoCompilerError("NVRTC makes no program")
    try:
        asked = (ctypes.c_char_p * len(options))(*(one.encode() for one in options))
        if library.nvrtcCompileProgram(program, len(options), asked):
            raise NoCompilerError(f"NVRTC refuses a kernel: {_text(library.nvrtcGetProgramLog, library, program)}")
        size = ctypes.c_size_t()
        library.nvrtcGetCUBINSize(program, ctypes.byref(size))
        binary = ctypes.create_string_buffer(size.value)
        library.nvrtcGetCUBIN(program, binary)
        return binary.raw
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _text(get: Any, library: Any, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    get(program, text)
    return text.value.decode(errors="replace")


def available() -> bool:
    """Return whether there is a compiler for the devices that torch sees."""
    if not torch.version.cuda or not torch.cuda.is_available():
        return False
    try:
        _compiler()
    except NoCompilerError:
        return False
    return True


@functools.cache
def _compiler() -> Any:
    major = (torch.version.cuda or "").partition(".")[0]
    name = f"libnvrtc.so.{major}"
    # on the loader's path, or loaded already, or beside torch as a package of its own
    for path in (name, *map(str, _packaged(name))):
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    raise NoCompilerError(f"no {name}")


def _packaged(name: str) -> Sequence[Path]:
    spec = importlib.util.find_spec("nvidia")
    roots = spec.submodule_search_locations if spec is not None else None
    return [path for root in roots or () for path in sorted(Path(root).glob(f"*/lib/{name}"))]


@functools.cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _check(result: int) -> None:
    if result:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(result, ctypes.byref(text))
        raise RuntimeError(f"CUDA error: {(text.value or b'unknown').decode()}")
