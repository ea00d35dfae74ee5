"""Every check of quantizers finds the one that it is there for, and says so in words."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import failures, variant
from torch import Tensor, nn

from lorakit.builtin.int8 import Int8
from lorakit.hooks import QuantizedWeight
from lorakit.testing import CheckError, check_quantizer, quantizer_checks
from lorakit.testing.causes import Failure, causes


def stored(self: Any, weight: Tensor, change: Callable[[dict[str, Tensor]], object]) -> QuantizedWeight:
    quantized = Int8.quantize(self, weight)
    tensors = dict(quantized.tensors)
    change(tensors)
    return dataclasses.replace(quantized, tensors=tensors)


def unchecked(self: Any, weight: Tensor) -> QuantizedWeight:
    scale = weight.float().abs().amax(1) * 127 / 127
    codes = (weight.float() / scale[:, None] * 127).round().to(torch.int8)
    return QuantizedWeight({"CB": codes, "SCB": scale}, tuple(weight.shape), weight.dtype)  # type: ignore[arg-type]


def noisy(self: Any, weight: Tensor) -> QuantizedWeight:
    return Int8.quantize(self, weight + 1e-3 * torch.randn(weight.shape).to(weight))


ASIDE: dict[tuple[int, int], Tensor] = {}


def kept_aside(self: Any, weight: Tensor) -> QuantizedWeight:
    quantized = Int8.quantize(self, weight)
    ASIDE[quantized.shape] = quantized.tensors["SCB"].clone()
    return quantized


def from_aside(self: Any, quantized: QuantizedWeight) -> Tensor:
    scales = ASIDE[quantized.shape].to(quantized.tensors["CB"].device)
    return Int8.dequantize(self, dataclasses.replace(quantized, tensors={**quantized.tensors, "SCB": scales}))


def half_of_a_wide_row(self: Any, quantized: QuantizedWeight) -> Tensor:
    weight = Int8.dequantize(self, quantized)
    weight[:, 4096:] = 0
    return weight


QUANTIZERS: dict[str, tuple[dict[str, Any], str]] = {
    "name": ({"name": "rank"}, "`rank` is a word of the language"),
    "documentation": ({"__doc__": None}, "has no docstring"),
    "copies": ({}, "attribute lookup Variant"),
    "import-without-torch": ({}, "imports torch when it is imported itself"),
    "options": ({"__annotations__": {"sizes": list[int]}, "sizes": dataclasses.field(default_factory=list)}, "list"),
    "spec-round-trip": ({"__eq__": lambda self, other: False}, "reads as"),
    "sizes-and-dtypes": ({"dequantize": lambda self, q: Int8.dequantize(self, q).float()}, "`dequantize` returned"),
    "closeness": ({"dequantize": lambda self, q: Int8.dequantize(self, q) * 2}, "off by 1.0"),
    "zeros": ({"quantize": lambda self, w: Int8.quantize(self, w + 1)}, "zeros came back with values up to"),
    "transposed": ({"quantize": lambda self, w: Int8.quantize(self, w.as_strided(w.shape, (w.shape[1], 1)))}, "bits"),
    "not-finite-weights": ({"quantize": unchecked}, "64 other values NaN or infinite"),
    "determinism": ({"quantize": noisy}, "gave other bits"),
    "weight-untouched": ({"quantize": lambda self, w: Int8.quantize(self, w.mul_(2))}, "changed the weight"),
    "declared-bits": ({"bits_per_weight": lambda self, shape: 8.0}, "the tensors hold"),
    "wanted-dtype": ({"dequantize": lambda self, q: Int8.dequantize(self, q).float()}, "`dequantize` returned"),
    "files": (
        {"quantize": lambda self, w: stored(self, w, lambda t: t.update(CB=t["CB"].to_sparse()))},
        "It raised",
    ),
    "module-copies": ({"__reduce__": lambda self: (str, ("",))}, "It raised"),
    "plain-tensors": (
        {"quantize": lambda self, w: stored(self, w, lambda t: t.update(SCB=t["SCB"].sum()))}, "has no dimension",
    ),
    "nothing-aside": ({"quantize": kept_aside, "dequantize": from_aside}, "kept aside"),
    "large-weights": ({"dequantize": half_of_a_wide_row}, "a part of a weight (2, 5003)"),
    "error-for-its-bits": ({"dequantize": lambda self, q: Int8.dequantize(self, q) * 1.1}, "at 8 bits a code"),
    "meta": ({"__deepcopy__": lambda self, memo: 1 / 0}, "ZeroDivisionError"),
}  # fmt: skip


# ways to store bytes that no layer should hold
DISGUISES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "bytes seen as floats": (lambda t: t.update(CB=t["CB"].view(torch.bfloat16)), "packed bytes stay integers"),
    "a number that learns": (lambda t: t.update(SCB=t["SCB"].clone().requires_grad_()), "requires a gradient"),
    "a parameter": (lambda t: t.update(SCB=nn.Parameter(t["SCB"], requires_grad=False)), "is a Parameter"),
}


@pytest.mark.parametrize("way", DISGUISES)
def test_quantizers_store_plain_tensors(way: str) -> None:
    change, words = DISGUISES[way]
    checks = quantizer_checks(variant(Int8, quantize=lambda self, w: stored(self, w, change)))
    found = failures(checks, "plain-tensors")
    assert found and words in found[0], found


@pytest.mark.parametrize("name", QUANTIZERS)
def test_quantizers(name: str) -> None:
    changes, words = QUANTIZERS[name]
    found = failures(quantizer_checks(variant(Int8, **changes)), name)
    assert found and words in found[0], found


def cut(rows: slice, columns: slice, where: Callable[[tuple[int, int]], bool]) -> Callable[..., Tensor]:
    """Return a way back that loses a part of the weights whose shapes are these."""

    def dequantize(self: Any, quantized: QuantizedWeight) -> Tensor:
        weight = Int8.dequantize(self, quantized)
        if where(quantized.shape):
            weight[rows, columns] = 0
        return weight

    return dequantize


ALL = slice(None)
# what only sizes show that few weights have
SIZES: dict[str, Callable[..., Tensor]] = {
    "past 8192 columns": cut(ALL, slice(8192, None), lambda shape: True),
    "the last column of odd ones": cut(ALL, slice(-1, None), lambda shape: shape[1] % 2 == 1 and shape[1] > 1000),
    "the last row of odd ones": cut(slice(-1, None), ALL, lambda shape: shape[0] % 2 == 1 and shape[0] > 100),
    "past 1024 rows": cut(slice(1024, None), ALL, lambda shape: True),
    "past 2^18 weights": cut(slice(512, None), ALL, lambda shape: shape[0] * shape[1] > 2**18),
    "single columns": cut(ALL, ALL, lambda shape: shape[1] == 1),
}


@pytest.mark.parametrize("way", SIZES)
def test_quantizers_at_sizes_that_few_weights_have(way: str) -> None:
    checks = quantizer_checks(variant(Int8, dequantize=SIZES[way]))
    asked = [check for check in checks if check.name in ("closeness", "error-for-its-bits", "large-weights")]
    failed = [Failure("int8", check, reason) for check in asked for reason in failures([check], check.name)]
    (text,) = causes(failed)
    assert "a part of a weight" in text and text.startswith("failed: int8, large-weights[")


def fewer_codes(self: Any, quantized: QuantizedWeight) -> Tensor:
    codes = (quantized.tensors["CB"].float() / 16).round() * 16
    tensors = {**quantized.tensors, "CB": codes.clamp(-112, 112).to(torch.int8)}
    return Int8.dequantize(self, dataclasses.replace(quantized, tensors=tensors))


def with_holes(self: Any, quantized: QuantizedWeight) -> Tensor:
    weight = FourBits.dequantize(self, quantized)
    weight.view(-1)[::16] = 0
    return weight


def with_flips(self: Any, quantized: QuantizedWeight) -> Tensor:
    weight = FourBits.dequantize(self, quantized)
    weight.view(-1)[::20] *= -1
    return weight


class FourBits(Int8):
    """Fifteen levels by row, one a byte half: a scheme whose error is what four bits cost."""

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        rows, columns = weight.shape
        blocks = nn.functional.pad(weight.float().flatten(), (0, -weight.numel() % 64)).view(-1, 64)
        scale = blocks.abs().amax(dim=1) / 7
        codes = (blocks / scale.masked_fill(scale == 0, 1)[:, None]).round().to(torch.int8) + 8
        packed = (codes[:, ::2] * 16 + codes[:, 1::2]).to(torch.uint8)
        return QuantizedWeight({"packed": packed, "scale": scale}, (rows, columns), weight.dtype)

    def dequantize(self, quantized: QuantizedWeight) -> Tensor:
        packed = quantized.tensors["packed"].int()
        codes = torch.stack([packed // 16, packed % 16], dim=2).flatten(1) - 8
        values = (codes * quantized.tensors["scale"][:, None]).flatten()
        rows, columns = quantized.shape
        return values[: rows * columns].view(rows, columns).to(quantized.dtype)


@pytest.mark.parametrize(
    ("base", "dequantize"),
    [(Int8, fewer_codes), (FourBits, with_holes), (FourBits, with_flips)],
)
def test_quantizers_that_lose_more_than_their_bits_cost(base: type, dequantize: Callable[..., Tensor]) -> None:
    assert not failures(quantizer_checks(variant(base)), "error-for-its-bits")
    found = failures(quantizer_checks(variant(base, dequantize=dequantize)), "error-for-its-bits")
    assert found and "is too far" in found[0]


KEPT_ASIDE = """
import dataclasses
from typing import ClassVar
import torch
from lorakit.builtin.int8 import Int8

KNOWN = {}

@dataclasses.dataclass(frozen=True)
class Aside(Int8):
    '''Int8 whose scales are found by what the codes are.'''

    name: ClassVar[str] = "aside"

    def quantize(self, weight):
        quantized = Int8.quantize(self, weight)
        codes, scale = quantized.tensors["CB"], quantized.tensors["SCB"]
        KNOWN[int(codes.long().sum())] = scale.clone()
        return dataclasses.replace(quantized, tensors={"CB": codes, "SCB": torch.ones_like(scale)})

    def dequantize(self, quantized):
        scale = KNOWN[int(quantized.tensors["CB"].long().sum())]
        return Int8.dequantize(self, dataclasses.replace(quantized, tensors={**quantized.tensors, "SCB": scale}))
"""


def test_a_quantizer_that_remembers_what_it_saw_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kept_aside.py").write_text(KEPT_ASIDE)
    monkeypatch.syspath_prepend(tmp_path)
    import kept_aside  # type: ignore[import-not-found]

    assert failures(quantizer_checks(kept_aside.Aside), "nothing-aside")
    # and it is still the module that was imported
    assert sys.modules["kept_aside"] is kept_aside


def on_the_instance(self: Any, weight: Tensor) -> QuantizedWeight:
    quantized = Int8.quantize(self, weight)
    object.__setattr__(self, "scale", quantized.tensors["SCB"].clone())
    return quantized


def from_the_instance(self: Any, quantized: QuantizedWeight) -> Tensor:
    return Int8.dequantize(self, dataclasses.replace(quantized, tensors={**quantized.tensors, "SCB": self.scale}))


def test_a_scale_on_the_instance_is_found() -> None:
    way = {"quantize": on_the_instance, "dequantize": from_the_instance}
    assert failures(quantizer_checks(variant(Int8, **way)), "nothing-aside")


def test_check_quantizer_names_all_that_failed() -> None:
    with pytest.raises(CheckError, match=r"fails \d+ checks:\n(.|\n)*declared-bits\[64x64\].*\n.*\n  bits_per_weight"):
        check_quantizer(variant(Int8, bits_per_weight=lambda self, shape: 1.0))


def test_calibration() -> None:
    def observe(self: Any, x: Tensor, seen: Any) -> Tensor:
        return x.flatten(0, -2).square().sum(0) + (0 if seen is None else seen)

    def quantize_observed(self: Any, weight: Tensor, seen: Any) -> QuantizedWeight:
        return Int8.quantize(self, weight)

    methods = {"observe": observe, "quantize_observed": quantize_observed}
    sound = quantizer_checks(variant(Int8, **methods))
    assert not failures(sound, "calibration") and not failures(sound, "calibration-without-inputs")
    noise = {**methods, "quantize_observed": lambda self, weight, seen: noisy(self, weight)}
    assert failures(quantizer_checks(variant(Int8, **noise)), "calibration")
    assert failures(quantizer_checks(variant(Int8, **noise)), "calibration-without-inputs")
    silent = {**methods, "observe": lambda self, x, seen: None}
    assert "no inputs at all" in failures(quantizer_checks(variant(Int8, **silent)), "calibration")[0]
