"""Two small ops that a compiler leaves as they are: one adds in place, one waits.

A compiler turns `addmm_` into `addmm`, which copies the wide matrix before it adds to it.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("lorakit", "FRAGMENT")
_LIBRARY.define(
    "add_product_(Tensor(a!) result, Tensor first, Tensor second, float scale) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define("copy_after(Tensor tensor, Tensor other) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


def add_product_(result: Tensor, first: Tensor, second: Tensor, scale: float) -> None:
    """Add scale · first @ second to a result (rows, columns) in place; first (rows, rank), second (rank, columns)."""
    if torch.compiler.is_compiling():
        torch.ops.lorakit.add_product_(result, first, second, scale)
    else:
        result.addmm_(first, second, alpha=scale)


def _add_product_(result: Tensor, first: Tensor, second: Tensor, scale: float) -> None:
    result.addmm_(first, second, alpha=scale)


def _copy_after(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a copy of a tensor that cannot be made before another is there."""
    return tensor.clone()


_LIBRARY.impl("add_product_", _add_product_, "CompositeExplicitAutograd")
_LIBRARY.impl("copy_after", _copy_after, "CompositeExplicitAutograd")
torch.library.register_fake("lorakit::add_product_", lambda result, first, second, scale: None, lib=_LIBRARY)
torch.library.register_fake("lorakit::copy_after", lambda tensor, other: torch.empty_like(tensor), lib=_LIBRARY)
