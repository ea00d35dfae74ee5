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
    # a table of positions and the like is no mixture: nobody who says `@experts` or `vision_tower.*` means it
    outright = not _are_experts(module, name)
    declared = getattr(module, "is_transposed", None)
    if declared if declared is not None else _multiplied_from_the_left(module, name):
        # files follow PEFT, which takes the second dimension for the inputs only where the class declares it
        kind = "stack_transposed" if declared else "stack_flipped"
        return LayerShape(kind, in_features=rows, out_features=columns, stack=stack, called=False, outright=outright)
    return LayerShape("stack", in_features=columns, out_features=rows, stack=stack, called=False, outright=outright)


def _are_experts(module: nn.Module, name: str) -> bool:
    """Whether a parameter is a stack of experts: by its name or its class's, or by how the stacks follow each other.

    An expert goes from the model's width to its own and back, so that the first matrix ends or begins as the last
    begins or ends; the matrices of an attention that lie by heads do not.
    """
    names = (name, *(base.__name__ for base in type(module).__mro__))
    if any(word in one.lower() for one in names for word in ("expert", "moe", "mixture")):
        return True
    stacks = _stacks(module)
    if len(stacks) < 2 or len({stack for stack, _, _ in stacks}) > 1:
        return False
    (_, rows, columns), (_, last_rows, last_columns) = stacks[0], stacks[-1]
    return columns == last_rows or rows == last_columns


def _stacks(module: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(value.shape) for value in module._parameters.values() if value is not None and value.ndim == 3]


def _multiplied_from_the_left(module: nn.Module, name: str) -> bool:
    """Whether the module computes x · W and not x · Wᵀ, told by how its stacks follow each other.

    An expert goes from the model's width to its own and back. Of (up, down), stored for x · W, the first is
    (width, inner) and the second (inner', width): what both share stands in the outer places, and else in the inner.
    """
    stacks = [shape[1:] for shape in _stacks(module)]
    if len(stacks) < 2:
        return False
    first, last = stacks[0], stacks[-1]
    return first[0] == last[1] and first[1] != last[0]
