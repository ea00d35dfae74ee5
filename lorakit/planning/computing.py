"""What a spec and a model come to on some hardware: the dtype computed in, and the bytes that follow from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from lorakit.dtypes import FLOATS, HALVES, LONG, itemsize
from lorakit.language.spec import Spec
from lorakit.language.statements import Adapt
from lorakit.planning.cascade import Decisions
from lorakit.planning.hardware import Compute, Hardware, choose
from lorakit.planning.inventory import Inventory, ParameterInfo
from lorakit.planning.plan import Plan, PlanEntry


def compute_for(spec: Spec, decisions: Decisions, inventory: Inventory, hardware: Hardware | None) -> Compute | None:
    """Return what a spec's model computes in; None on no hardware in particular, where the spec does not say it."""
    asked = spec.step.compute if spec.step else None
    trains = bool(decisions.train) or any(rule.bias == "adapter" for rule in decisions.adapt.values())
    return _choose(inventory, hardware, asked, trains)


def compute_again(plan: Plan, inventory: Inventory, hardware: Hardware) -> Compute | None:
    """Return what the model of a plan that was made elsewhere computes in on this hardware."""
    if plan.compute and plan.compute.asked:
        return plan.compute
    trains = any(entry.train or (entry.adapter and entry.adapter.bias_parameters) for entry in plan.entries)
    return _choose(inventory, hardware, None, trains)


def _choose(inventory: Inventory, hardware: Hardware | None, asked: str | None, trains: bool) -> Compute | None:
    if hardware is None:
        if asked is None:
            return None
        hardware = Hardware("cpu", frozenset(HALVES), "this CPU")
    return choose(_own(inventory, hardware), hardware, asked=asked, trains_in_full=trains)


def _own(inventory: Inventory, hardware: Hardware) -> str:
    """Return the dtype that most of a model's weights have, of those alone that the hardware is slow in, if any."""
    counts: Counter[str] = Counter()
    for parameter in inventory.unique_parameters():
        if parameter.dtype in FLOATS:
            counts[parameter.dtype] += parameter.numel
    slow = [dtype for dtype in counts if dtype in HALVES and dtype not in hardware.fast]
    return max(slow or counts, key=counts.__getitem__, default="float32")


def adapter_dtype(adapt: Adapt, weight: str | None, compute: Compute | None) -> str:
    """Return the dtype of an adapter on a weight of this dtype; unasked never float16, where AdamW's eps is 0.

    On float64 it is float32, in which adapters are saved.
    """
    if adapt.dtype:
        return LONG[adapt.dtype]
    if compute and compute.dtype == "float16":
        return "float32"
    if adapt.quant or weight not in FLOATS:
        return "bfloat16"
    return "float32" if weight in ("float16", "float64") else weight


def held_dtype(parameter: ParameterInfo, compute: Compute | None) -> str:
    """Return the dtype that a parameter is held in which nothing quantizes."""
    if compute is None or parameter.dtype not in FLOATS:
        return parameter.dtype
    return compute.dtype_for(parameter.dtype)


def held_itemsize(parameter: ParameterInfo, compute: Compute | None) -> int:
    """Return the bytes of one element of a parameter that nothing quantizes."""
    dtype = held_dtype(parameter, compute)
    return parameter.itemsize if dtype == parameter.dtype else itemsize(dtype)


def widened_bytes(inventory: Inventory, entries: Iterable[PlanEntry], compute: Compute | None) -> int:
    """Return the bytes that a model's weights grow by for being held in the dtype that they are multiplied in."""
    quantized = {entry.path for entry in entries if entry.quant}
    apart = {weight.weight_id for path in quantized if (weight := inventory.modules[path].weight)}
    return sum(
        parameter.numel * (held_itemsize(parameter, compute) - parameter.itemsize)
        for parameter in inventory.unique_parameters()
        if parameter.weight_id not in apart
    )


def dequantized_bytes(entry: PlanEntry, compute: Compute | None) -> int:
    """Return the bytes of an entry's weight while it is multiplied."""
    if compute is None or entry.dtype not in FLOATS:
        return entry.bytes.weight_before
    return entry.bytes.weight_before * itemsize(compute.dtype_for(entry.dtype)) // itemsize(entry.dtype)
