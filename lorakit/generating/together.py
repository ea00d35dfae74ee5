"""Products of few rows that read one input, which follow from what was recorded: one launch multiplies them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils._pytree import tree_leaves

from lorakit.generating.recording import Operation, Recording, Value

# an op's name, and how it is given: the input, lists with one of each member, and what all members share
PRODUCT = "lorakit::few_rows_4bit"
LISTS = slice(1, 10)


def together(operations: Sequence[Operation], recording: Recording) -> list[Operation]:
    """Return the operations of a level with those products put together, where the first of them was."""
    groups: dict[Any, list[Operation]] = {}
    written = recording.written
    for operation in operations:
        if _is_product(operation, recording, written):
            groups.setdefault(_key(operation, recording), []).append(operation)
    joined = {id(members[0]): _joined(members) for members in groups.values()}
    later = {id(one) for members in groups.values() for one in members[1:]}
    return [joined.get(id(one), one) for one in operations if id(one) not in later]


def _is_product(operation: Operation, recording: Recording, written: set[Value]) -> bool:
    if operation.function._schema.name != PRODUCT or operation.kwargs:
        return False
    # what is there from the beginning, and as it was then
    held = {recording.base(one) for one in tree_leaves(operation.args[LISTS]) if isinstance(one, Value)}
    return held <= recording.found.keys() and not held & written


def _key(operation: Operation, recording: Recording) -> Any:
    doubled, factors = bool(operation.args[3]), operation.args[6]
    dtypes = {recording.forms[one].dtype for one in factors if one is not None}
    return _same(operation.args[0], recording), operation.args[LISTS.stop :], doubled, tuple(map(str, dtypes))


def _same(value: Value, recording: Recording) -> Any:
    """Return what is equal for the same view of the same memory."""
    if value not in recording.views:
        return value
    view, index = recording.views[value]
    first, *others = view.args
    return _same(first, recording), view.function, repr(others), repr(view.kwargs), index


def _joined(members: Sequence[Operation]) -> Operation:
    first = members[0]
    if len(members) == 1:
        return first
    lists = zip(*(one.args[LISTS] for one in members), strict=True)
    args = (first.args[0], *([item for part in parts for item in part] for parts in lists), *first.args[LISTS.stop :])
    results = tuple(result for one in members for result in one.results)
    return Operation(first.function, args, first.kwargs, results, frozenset())
