"""Matrices that a module holds as its own parameters: stacks of experts, routers, the projection of an attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorakit.hooks.specs import hookimpl
from lorakit.values import LayerShape

if TYPE_CHECKING:
    from torch import nn


@hookimpl
def lorakit_describe_parameter(module: nn.Module, name: str) -> LayerShape | None:
    from torch import nn

    shape = tuple(module.get_parameter(name).shape)
    if isinstance(module, nn.MultiheadAttention) and name == "in_proj_weight":
        return LayerShape("stack", in_features=shape[1], out_features=shape[0], stack=1, called=False)
    if len(shape) == 2 and name == "weight":
        # a router, or what else is no Linear: nobody who says `mlp.*` means it
        return LayerShape("stack", shape[1], shape[0], stack=1, called=False, outright=True)
    if len(shape) != 3 or shape[0] < 2 or min(shape) < 2:
        return None
    stack, rows, columns = shape
    declared = getattr(module, "is_transposed", None)
    if declared if declared is not None else _multiplied_from_the_left(module, name):
        # files follow PEFT, which takes the second dimension for the inputs only where the class declares it
        kind = "stack_transposed" if declared else "stack_flipped"
        return LayerShape(kind, in_features=rows, out_features=columns, stack=stack, called=False)
    return LayerShape("stack", in_features=columns, out_features=rows, stack=stack, called=False)


def _multiplied_from_the_left(module: nn.Module, name: str) -> bool:
    """Whether the module computes x · W and not x · Wᵀ, told by how its stacks follow each other.

    An expert goes from the model's width to its own and back. Of (up, down), stored for x · W, the first is
    (width, inner) and the second (inner', width): what both share stands in the outer places, and else in the inner.
    """
    stacks = [tuple(value.shape[1:]) for value in module._parameters.values() if value is not None and value.ndim == 3]
    if len(stacks) < 2:
        return False
    first, last = stacks[0], stacks[-1]
    return first[0] == last[1] and first[1] != last[0]
