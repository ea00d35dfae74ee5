"""What a module's code does with the weights of its children, where it does not call them."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from types import FunctionType

# what asks about a weight, or sets it, and computes nothing with it
NO_USE = ("isinstance", "hasattr", "getattr", "init.", "nn.init.", "torch.nn.init.")


@functools.cache
def weights_read_by(kind: type) -> frozenset[str]:
    """Return the names of the children whose whole weight the code of a class multiplies with or hands on.

    Such a child may never be called, or only on some devices: Mamba's `self.dt_proj.weight @ x`, or the `out_proj` that
    it gives to a fused kernel. A class without source has none that are known.
    """
    return frozenset(name for function in _methods(kind) for name in _read_in(function))


def _methods(kind: type) -> Iterator[FunctionType]:
    for name in dir(kind):
        function = inspect.unwrap(inspect.getattr_static(kind, name, None))
        # most methods name no weight, which their code tells without its source
        if isinstance(function, FunctionType) and "init" not in name and "weight" in function.__code__.co_names:
            yield function


def _read_in(function: FunctionType) -> Iterator[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            operands = [node.left, node.right]
        elif isinstance(node, ast.Call) and not ast.unparse(node.func).startswith(NO_USE):
            operands = [*node.args, *(keyword.value for keyword in node.keywords)]
        else:
            continue
        yield from filter(None, map(_child_of_weight, operands))


def _child_of_weight(node: ast.expr) -> str | None:
    """Return NAME of `self.NAME.weight`, transposed or cast or neither; None for anything else."""
    match node:
        case ast.Attribute(ast.Attribute(ast.Name("self"), name), "weight"):
            return name
        case ast.Attribute(inner, "T") | ast.Call(ast.Attribute(inner, "t" | "to" | "float" | "type")):
            return _child_of_weight(inner)
    return None
