"""A function that is called with the same memory each time, with what stands between its products compiled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lorakit.generating.levels import Levels, levels
from lorakit.generating.one_query import one_query
from lorakit.generating.pieces import Compile, Piece, compiled, inductor, piece
from lorakit.generating.places import put_back, taken
from lorakit.generating.recording import Operation, Recording, Value, record
from lorakit.generating.together import together


def fused(
    run: Callable[[], Any],
    change: Callable[[], None],
    restore: Callable[[], None],
    say: Callable[[str], None],
    compile: Compile = inductor,
) -> tuple[Callable[[], Any], Sequence[Any]]:
    """Return what computes as a function does, from the tensors that the function reads to those that it writes.

    With it comes what has to be there as long as its kernels run, such as in a graph. No Python of the function runs
    again. What was recorded is compared with the function on inputs that `change` makes; `restore` puts back what a run
    writes. Raises: ValueError where it would compute something else; whatever the function raises.
    """
    held: dict[Any, Tensor] = {}
    form: Any = None

    def listed() -> list[Tensor]:
        nonlocal form
        held.clear()
        with one_query():
            form = taken(run(), (), held)
        return list(held.values())

    recording = record(listed)
    places = list(held)
    restore()
    change()
    _check(recording, listed, restore)
    held.clear()
    parts = _parts(recording)
    ready = compiled([one for one in parts if isinstance(one, Piece)], compile, say)
    steps = _steps(parts, ready, recording)

    def again() -> Any:
        values = _Values(recording)
        for step in steps:
            step.run(values)
        return put_back(form, dict(zip(places, map(values.get, recording.results), strict=True)))

    return again, (*recording.constants, *ready.values())


def _check(recording: Recording, run: Callable[[], list[Tensor]], restore: Callable[[], None]) -> None:
    """Raises: ValueError where the operations alone compute something else: code of others writes to memory too."""
    kept = [recording.found[value] for value in recording.written if value in recording.found]
    # before the function: what others write is of other inputs still
    values = _Values(recording)
    for step in _steps(recording.operations, {}, recording):
        step.run(values)
    found = [tensor.clone() for tensor in (*map(values.get, recording.results), *kept)]
    restore()
    same = all(map(_same, found, (*run(), *kept)))
    restore()
    if not same:
        raise ValueError("not all that it computes are operations of torch")


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | ((one != one) & (other != other))).all())


@dataclass(frozen=True, slots=True)
class _Step:
    """A call of a piece or of an operation, and what nobody needs after it."""

    call: Callable[[_Values], None]
    done: tuple[Value, ...]

    def run(self, values: _Values) -> None:
        self.call(values)
        values.forget(self.done)


class _Values:
    """The tensors of one run."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._held = dict(recording.found)

    def get(self, value: Value) -> Tensor:
        if value in self._recording.views:
            operation, index = self._recording.views[value]
            result: Tensor = tree_leaves(self.called(operation))[index]
            return result
        return self._held[value]

    def called(self, operation: Operation) -> Any:
        args, kwargs = tree_map(
            lambda one: self.get(one) if isinstance(one, Value) else one, (operation.args, operation.kwargs)
        )
        return operation.function(*args, **kwargs)

    def put(self, values: Sequence[Value | None], tensors: Sequence[Any]) -> None:
        self._held.update({value: one for value, one in zip(values, tensors, strict=True) if value is not None})

    def forget(self, values: Sequence[Value]) -> None:
        for value in values:
            self._held.pop(value, None)


def _parts(recording: Recording) -> list[Piece | Operation]:
    parts: list[Piece | Operation] = []
    by_level = levels(recording)
    reads = _reads(recording, by_level)
    for level, operations in by_level.items():
        if level % 2:
            parts += together(operations, recording)
        else:
            needed = {value for value in reads if reads[value] - {level}}
            parts.append(piece(operations, needed, recording))
    return parts


def _steps(
    parts: Sequence[Piece | Operation], ready: Mapping[Any, Callable[..., Any]], recording: Recording
) -> list[_Step]:
    """Return calls, `ready` being what runs pieces by their keys; memory is given up with its last use."""
    last: dict[Value, int] = {}
    for number, part in enumerate(parts):
        used = part.inputs if isinstance(part, Piece) else map(recording.base, part.read)
        last.update(dict.fromkeys((*used, *_made(part)), number))
    for value in map(recording.base, recording.results):
        last[value] = len(parts)
    done: dict[int, list[Value]] = defaultdict(list)
    for value, number in last.items():
        done[number].append(value)
    return [_Step(_call(part, ready), tuple(done[number])) for number, part in enumerate(parts)]


def _reads(recording: Recording, by_level: Levels) -> dict[Value, set[int]]:
    """Return the levels where a base's memory is read; what is returned is read at -1."""
    reads: dict[Value, set[int]] = defaultdict(set)
    for level, operations in by_level.items():
        for operation in operations:
            for value in operation.read:
                reads[recording.base(value)].add(level)
    for value in recording.results:
        reads[recording.base(value)].add(-1)
    return reads


def _made(part: Piece | Operation) -> list[Value]:
    made = part.outputs if isinstance(part, Piece) else part.results
    return [one for one in made if one is not None]


def _call(part: Piece | Operation, ready: Mapping[Any, Callable[..., Any]]) -> Callable[[_Values], None]:
    if isinstance(part, Piece):
        compute = ready.get(part.key, part.module)

        def run_piece(values: _Values) -> None:
            values.put(part.outputs, compute(*map(values.get, part.inputs)))

        return run_piece

    def run_one(values: _Values) -> None:
        values.put(part.results, tree_leaves(values.called(part)))

    return run_one
