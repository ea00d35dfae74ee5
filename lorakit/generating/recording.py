"""One run of a function as the list of torch's operations that it called, with the tensors that they passed on.

What is recorded holds for the tensors that the function found: their values may change, their places and shapes not.
Numbers that Python computed on the way are as they were, as in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of a run, by its number."""

    number: int


@dataclass(frozen=True, slots=True)
class Form:
    """What is known of a tensor's memory."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    is_plain: bool

    @classmethod
    def of(cls, tensor: Tensor) -> Form:
        plain = type(tensor) in (Tensor, torch.nn.Parameter, torch.nn.Buffer) and tensor.layout == torch.strided
        stride = tensor.stride() if plain else ()
        return cls(tuple(tensor.shape), tuple(stride), tensor.dtype, tensor.device, plain)


@dataclass(frozen=True, slots=True)
class Operation:
    """A call: values stand for tensors, in what it was given and in the list of what it returned."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Value | None, ...]
    written: frozenset[Value]

    @property
    def read(self) -> list[Value]:
        return [one for one in tree_leaves((self.args, self.kwargs)) if isinstance(one, Value)]


@dataclass(slots=True)
class Recording:
    """The operations of a run in their order. `views` says which view made a value, and as which of its results."""

    operations: list[Operation] = field(default_factory=list)
    views: dict[Value, tuple[Operation, int]] = field(default_factory=dict)
    forms: dict[Value, Form] = field(default_factory=dict)
    found: dict[Value, Tensor] = field(default_factory=dict)
    results: list[Value] = field(default_factory=list)
    # of Python's numbers, which nobody else holds
    constants: list[Tensor] = field(default_factory=list)

    @property
    def written(self) -> set[Value]:
        """Whose memory is written."""
        return {self.base(value) for operation in self.operations for value in operation.written}

    def base(self, value: Value) -> Value:
        """Return whose memory a value lies in."""
        while value in self.views:
            value = self.views[value][0].read[0]
        return value


def record(run: Callable[[], Sequence[Tensor]]) -> Recording:
    """Run a function once, and return what it called. Raises: ValueError where Python asks a device for a number."""
    recorder = _Recorder()
    with recorder:
        returned = run()
    recorder.recording.results = [recorder.value(tensor) for tensor in returned]
    _check(recorder.recording)
    return recorder.recording


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.recording = Recording()
        self._values: Any = WeakTensorKeyDictionary()
        self._count = 0

    def value(self, tensor: Tensor) -> Value:
        """Return a tensor's value, which was there before the run where no operation made it."""
        known: Value | None = self._values.get(tensor)
        if known is None:
            known = self._new(tensor)
            self.recording.found[known] = tensor
        return known

    def _new(self, tensor: Tensor) -> Value:
        value = Value(self._count)
        self._count += 1
        self._values[tensor] = value
        self.recording.forms[value] = Form.of(tensor)
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.lift_fresh.default:
            self.recording.constants += args
        given_args, given_kwargs = tree_map(self._given, (args, kwargs))
        returned = func(*args, **kwargs)
        _refuse_questions(func, returned, (args, kwargs))
        written = _written(func, given_args, given_kwargs)
        made: list[tuple[int, Value]] = []
        results: list[Value | None] = []
        for index, one in enumerate(tree_leaves(returned)):
            if not isinstance(one, Tensor):
                results.append(None)
                continue
            known = self._values.get(one)
            if known is None:
                known = self._new(one)
                made.append((index, known))
            results.append(known)
        operation = Operation(func, given_args, given_kwargs, tuple(results), written)
        if not written and _is_view(func) and operation.read:
            self.recording.views.update({value: (operation, index) for index, value in made})
        else:
            self.recording.operations.append(operation)
        return returned

    def _given(self, one: Any) -> Any:
        return self.value(one) if isinstance(one, Tensor) else one


def _is_view(function: Any) -> bool:
    return any(one.alias_info is not None for one in function._schema.returns)


def _written(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> frozenset[Value]:
    written: list[Any] = []
    for index, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[index] if index < len(args) else kwargs.get(argument.name)
            written += tree_leaves(given)
    return frozenset(one for one in written if isinstance(one, Value))


def _refuse_questions(function: Any, returned: Any, given: Any) -> None:
    # beside tensors, numbers are of their shapes
    if isinstance(returned, int | float | complex) and any(
        isinstance(one, Tensor) and one.device.type != "cpu" for one in tree_leaves(given)
    ):
        raise ValueError(f"{function} asks the device for a number")


def _check(recording: Recording) -> None:
    """Raises: ValueError where memory is written that is known by several names."""
    held: dict[int, int] = {}
    storages = {value: _storage(tensor) for value, tensor in recording.found.items()}
    for place in storages.values():
        if place is not None:
            held[place] = held.get(place, 0) + 1
    for value in recording.written & storages.keys():
        place = storages[value]
        if place is None or held[place] > 1:
            raise ValueError("it writes to memory that several tensors share")


def _storage(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return None
