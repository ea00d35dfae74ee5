"""What a model is computed in: the dtype that the hardware is quick in, decided without looking at the hardware."""

from __future__ import annotations

from dataclasses import dataclass

from lorakit.dtypes import HALVES, LONG, SHORT, short_name


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where a model is computed: `device` is torch's word for it, `fast` names the 16-bit dtypes that it is quick in.

    `name` is for people, such as `this CPU` or `Tesla T4`.
    """

    device: str
    fast: frozenset[str]
    name: str

    @property
    def is_cpu(self) -> bool:
        return self.device == "cpu"


@dataclass(frozen=True, slots=True)
class Compute:
    """Frozen weights that the model holds in `own` are multiplied in `dtype`, both as torch names them.

    `reason` says why where the two differ; `asked` says that the spec wants it so, on any hardware.
    """

    dtype: str
    own: str
    reason: str = ""
    asked: bool = False

    def __post_init__(self) -> None:
        # a plan may come from a file that anyone wrote
        if self.dtype != self.own and self.dtype not in SHORT:
            raise ValueError(f"a model computes in {', '.join(SHORT)}, not {self.dtype!r}")

    def dtype_for(self, dtype: str) -> str:
        """Return the dtype that a floating tensor of the model is held in: none is left that is slow to multiply."""
        moves = dtype == self.own or (self.dtype == "float32" and dtype in HALVES)
        return self.dtype if moves and (self.asked or self.dtype != self.own) else dtype

    @property
    def words(self) -> str:
        """What a plan says of it; nothing where the model computes in its own dtype."""
        return "" if self.dtype == self.own else f"computes in {short_name(self.dtype)}: {self.reason}"


def choose(own: str, hardware: Hardware, *, asked: str | None = None, trains_in_full: bool = False) -> Compute:
    """Return what a model whose weights are of dtype `own` is computed in; `asked` is a spec's word, such as `fp32`.

    A model keeps its own dtype where that is quick. Else it is float32 on a CPU and float16 on an accelerator that has
    no bfloat16, unless parameters of the model itself train: AdamW's eps of 1e-8 is 0 in float16.
    """
    if asked is not None:
        return Compute(LONG[asked], own, f"the spec says `step compute {asked}`", asked=True)
    if own == "float16" and trains_in_full:
        return Compute("float32", own, "what trains in full cannot train in fp16")
    if own not in HALVES or own in hardware.fast:
        return Compute(own, own)
    reason = f"{hardware.name} has no {short_name(own)} products"
    if hardware.is_cpu or "float16" not in hardware.fast:
        return Compute("float32", own, reason)
    if trains_in_full:
        return Compute("float32", own, f"{reason}, and what trains in full cannot train in fp16")
    return Compute("float16", own, reason)
