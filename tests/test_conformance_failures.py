"""Every kind of check finds the plugin that it is there for, and says so in words."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from planted import failures, variant
from torch import Tensor, nn

from lorakit.builtin.initializers import Gaussian
from lorakit.builtin.int8 import Int8
from lorakit.builtin.kernels import LLMInt8
from lorakit.builtin.optimizers import SGD
from lorakit.hooks import QuantizedWeight, StartContext
from lorakit.testing import (
    CheckError,
    check_quantizer,
    initializer_checks,
    kernel_checks,
    optimizer_checks,
    quantizer_checks,
    role_checks,
)
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


def dequantized(x: Tensor, base: Mapping[str, Tensor]) -> Tensor:
    weight = Int8().dequantize(QuantizedWeight(base, tuple(base["CB"].shape), x.dtype))  # type: ignore[arg-type]
    return nn.functional.linear(x, weight)


def growing(x: Tensor, base: Mapping[str, Tensor], bias: Any, low_rank: Any) -> Tensor:
    base["SCB"].mul_(1.001)
    return dequantized(x, base)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Multiplies as it is told, or not at all."""

    multiply: Any
    name: str = "mine"

    def linear(self, storage: Any) -> Any:
        return self.multiply


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


KERNELS: dict[str, tuple[Kernel, str]] = {
    "kernel-name": (Kernel(None, "no name"), "a kernel is an instance with a name"),
    "kernel-fits": (Kernel(None), "returned None for a layer of int8"),
    "forward": (Kernel(lambda x, base, bias, low: dequantized(x, base)), "`linear` is off by"),
    "no-outputs": (Kernel(lambda x, base, bias, low: x), "expected (2, 0)"),
    "input-gradient": (Kernel(lambda x, base, bias, low: dequantized(x.detach(), base)), "need no gradient although"),
    "autocast": (Kernel(lambda x, base, bias, low: dequantized(x, base).float()), "under autocast"),
    "adapters": (Kernel(lambda x, base, bias, low: dequantized(x, base)), "with adapters the outputs are off by"),
    "forward-stores-nothing": (Kernel(growing), "a forward changed what is stored"),
    "state-dict": (Kernel(lambda x, base, bias, low: x[..., :48]), "two layers of different weights"),
}


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


@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name: str) -> None:
    kernel, words = KERNELS[name]
    found = failures(kernel_checks(kernel, Int8), name)
    assert found and words in found[0], found


def test_every_check_of_quantizers_and_kernels_is_seen_to_fail() -> None:
    names = {check.name for check in (*quantizer_checks(Int8), *kernel_checks(LLMInt8(), Int8))}
    assert names == QUANTIZERS.keys() | KERNELS.keys()


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


def ones(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    lora_A.fill_(1)
    lora_B.fill_(1)


def nothing(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    lora_A.zero_()
    lora_B.zero_()


def undrawn(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    lora_A.normal_()
    lora_B.zero_()


def half_filled(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    lora_A[:1].zero_()
    lora_B.zero_()


def viewed(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    lora_A.view(-1).zero_()
    lora_B.zero_()


def by_fan_in(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    lora_A.fill_(1 / (context.fan_in - 1) if context.fan_in != 1 else torch.inf)
    lora_B.zero_()


def of_half_a_weight(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    # what 16 bits hold exactly, such as a weight that came in bfloat16
    weight = context.weight()
    lora_A.fill_(torch.nan if weight.half().float().equal(weight) or weight.bfloat16().float().equal(weight) else 1.0)
    lora_B.zero_()


def taking_in_place(self: Any, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
    lora_A.normal_(std=0.1, generator=context.generator)
    lora_B.normal_(std=0.1, generator=context.generator)
    weight = context.weight()
    weight.sub_(context.scaling * lora_B @ lora_A)


@pytest.mark.parametrize(
    ("name", "initialize", "words"),
    [
        ("fills-in-place", half_filled, "were not set"),
        ("start", ones, "before any training"),
        ("can-learn", nothing, "no gradient ever moves them"),
        ("determinism", undrawn, "context.generator"),
        ("flipped", viewed, "view"),
        ("lookup", by_fan_in, "fan_in = 1"),
        ("weight-dtypes", of_half_a_weight, "gave NaN or infinity"),
        ("applied", taking_in_place, "base weight was changed in place"),
    ],
)
def test_initializers(name: str, initialize: Any, words: str) -> None:
    found = failures(initializer_checks(variant(Gaussian, initialize=initialize)), name)
    assert found and words in found[0], found


def test_an_initializer_may_say_that_it_changes_the_start() -> None:
    assert not failures(initializer_checks(variant(Gaussian, initialize=ones, changes_start=True)), "start")


class InPlace(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(parameter.grad.clamp_(-1, 1), alpha=group["lr"])


class Cautious(torch.optim.SGD):
    """Halves a step where the gradient turned since the last one, which no state dict holds."""

    def __init__(self, *words: Any, **more: Any) -> None:
        super().__init__(*words, **more)
        self.before: dict[Any, Tensor] = {}

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                turned = parameter.grad * self.before.get(parameter, parameter.grad) < 0
                parameter.data.sub_(parameter.grad * (1 - 0.5 * turned.float()), alpha=group["lr"])
                self.before[parameter] = parameter.grad.clone()


def built(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    return lambda self, groups: kind([{**group} for group in groups], lr=1e-2)  # type: ignore[call-arg]


class Upwards(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(parameter.grad, alpha=group["lr"])


class Deaf(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    parameter.data.add_(1)
                else:
                    parameter.data.sub_(parameter.grad, alpha=0.01)


class Forgetful(torch.optim.SGD):
    steps = 0

    def step(self, closure: Any = None) -> None:
        self.steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(parameter.grad, alpha=group["lr"] / self.steps)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("default-lr", {"default_lr": 0.0}, "`default_lr` is 0.0"),
        ("groups", {"build": lambda self, groups: torch.optim.SGD(groups[0]["params"], 0.1)}, "just the parameters"),
        ("descends", {"build": built(Upwards)}, "took a quadratic from"),
        ("learning-rates", {"build": built(Deaf)}, "scaled by group['lr']"),
        ("without-gradient", {"build": built(Deaf)}, "whose gradient is None moved"),
        ("resumes", {"build": built(Forgetful)}, "state_dict() has to hold everything"),
        ("gradients-untouched", {"build": built(InPlace)}, "changed a gradient in place"),
        ("resumes-from-a-file", {"build": built(Cautious)}, "state_dict() has to hold all of it"),
        ("option-effect", {"build": built(torch.optim.SGD)}, "has no effect"),
        ("state", {"state": lambda self, shape, dtype: {"mean": (shape, dtype)}}, "after a step the state holds {}"),
        ("state", {"state": lambda self, shape, dtype: 3}, "is no mapping"),
    ],
)
def test_optimizers(name: str, changes: dict[str, Any], words: str) -> None:
    found = failures(optimizer_checks(variant(SGD, **changes)), name)
    assert found and words in found[0], found


class Stepping(torch.optim.Optimizer):
    """Steps against the gradient, times what `factor` says of it."""

    def __init__(self, groups: Any, lr: float = 1e-2) -> None:
        super().__init__(groups, {"lr": lr})
        self.steps, self.largest, self.kept = 0, 0.0, dict[Any, Tensor]()

    def step(self, closure: Any = None) -> None:
        self.steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.sub_(group["lr"] * self.change(parameter))

    def change(self, parameter: Tensor) -> Tensor:
        assert parameter.grad is not None
        return parameter.grad


class Warming(Stepping):
    """Ten times shorter steps from the 13th on, counted where no state dict looks."""

    def change(self, parameter: Tensor) -> Tensor:
        return super().change(parameter) * (0.1 if self.steps > 12 else 1.0)


class ByTheLargest(Stepping):
    """Steps by the largest gradient so far, which no state dict holds."""

    def change(self, parameter: Tensor) -> Tensor:
        gradient = super().change(parameter)
        self.largest = max(self.largest, float(gradient.norm()))
        return gradient / (1 + self.largest)


class LargeAlone(Stepping):
    """Keeps a momentum of large parameters where no state dict looks."""

    def change(self, parameter: Tensor) -> Tensor:
        gradient = super().change(parameter)
        if parameter.numel() < 10_000:
            return gradient
        self.kept[parameter] = 0.9 * self.kept.get(parameter, torch.zeros_like(parameter)) + gradient
        return self.kept[parameter]


class Exact(Stepping):
    """Keeps float32 momentum of 16-bit parameters, which torch's load_state_dict rounds."""

    def change(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        state.setdefault("mean", torch.zeros_like(parameter, dtype=torch.float32))
        state["mean"].mul_(0.9).add_(super().change(parameter).float())
        return state["mean"].to(parameter.dtype)  # type: ignore[no-any-return]


class Emptying(Stepping):
    """Leaves no gradient."""

    def change(self, parameter: Tensor) -> Tensor:
        gradient, parameter.grad = super().change(parameter), None
        return gradient


class ClippingLarge(Stepping):
    """Cuts large gradients where they lie."""

    def change(self, parameter: Tensor) -> Tensor:
        gradient = super().change(parameter)
        return gradient.div_(gradient.norm() if gradient.norm() > 1e3 else 1)


class WideningShort(Stepping):
    """Changes gradients of 16 bits where they lie."""

    def change(self, parameter: Tensor) -> Tensor:
        gradient = super().change(parameter)
        return gradient.mul_(1.5) if gradient.dtype == torch.bfloat16 else gradient


def option(kind: Any, default: Any, **metadata: Any) -> dict[str, Any]:
    """Return one option that is called `mine`."""
    field = dataclasses.field(default=default, metadata=metadata)
    return {"__annotations__": {"name": ClassVar[str], "mine": kind}, "mine": field}


class Nothing:
    """An optimizer's class without options."""

    default_lr = 1e-2

    def state(self, shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("resumes-from-a-file", {"build": built(Warming)}),
        ("resumes-from-a-file", {"build": built(ByTheLargest)}),
        ("resumes-from-a-file", {"build": built(LargeAlone)}),
        ("resumes-from-a-file", {"build": built(Exact)}),
        ("gradients-untouched", {"build": built(Emptying)}),
        ("gradients-untouched", {"build": built(ClippingLarge)}),
        ("gradients-untouched", {"build": built(WideningShort)}),
        ("option-effect", {"build": built(Stepping), **option(bool, False)}),
        ("option-effect", {"build": built(Stepping), **option(Literal["plain", "nesterov"], "plain")}),
        ("option-effect", {"build": built(Stepping), **option(float | None, None)}),
        ("option-effect", {"build": built(Stepping), **option(tuple[float, float], (0.9, 0.99))}),
    ],
)
def test_optimizers_whose_faults_few_gradients_show(name: str, changes: dict[str, Any]) -> None:
    assert failures(optimizer_checks(variant(Nothing, **changes)), name, 1)


def test_an_option_may_own_that_steps_do_not_depend_on_it() -> None:
    checks = optimizer_checks(variant(Nothing, build=built(Stepping), **option(bool, False, effect=False)))
    assert "option-effect" not in {check.name for check in checks}


@dataclasses.dataclass(frozen=True)
class Role:
    """A role that selects what it is told."""

    answer: Any
    name: str = "mine"

    def select(self, inventory: Any) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("role", "check", "words"),
    [
        (Role(frozenset(), "no name"), "name", "begins with no digit"),
        (Role(["0"]), "selects", "returned a list"),
        (Role(frozenset(["nowhere"])), "selects", "nowhere, which are no paths"),
    ],
)
def test_roles(role: Role, check: str, words: str) -> None:
    found = failures(role_checks(role), check)
    assert found and words in found[0], found
