"""Frozen dataclasses to plain JSON values and back, by their type hints; nothing unknown is ever dropped."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, Union


def to_plain(value: Any) -> Any:
    """Return a value made of dicts, lists, numbers, strings, booleans and None alone."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: to_plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if _is_written(field)
        }  # fmt: skip
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: to_plain(item) for name, item in value.items()}
    return value


def from_plain(wanted: Any, plain: Any) -> Any:
    """Return the value of type `wanted` that `to_plain` made plain.

    Raises: ValueError naming the field that does not fit.
    """
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        return _dataclass(wanted, plain)
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is _AnyValue:
        return tuple(from_plain(wanted, item) for item in plain) if isinstance(plain, list) else plain
    if origin in (Union, types.UnionType):
        if plain is None and type(None) in arguments:
            return None
        return from_plain(next(argument for argument in arguments if argument is not type(None)), plain)
    if wanted is object:
        return plain
    if origin is Mapping:
        if not isinstance(plain, dict):
            raise ValueError(f"expected an object, found {plain!r}")
        return {name: from_plain(arguments[1], item) for name, item in plain.items()}
    if origin is tuple:
        if not isinstance(plain, list):
            raise ValueError(f"expected a list, found {plain!r}")
        if arguments[-1] is Ellipsis:
            return tuple(from_plain(arguments[0], item) for item in plain)
        if len(plain) != len(arguments):
            raise ValueError(f"expected {len(arguments)} items, found {len(plain)}")
        return tuple(from_plain(argument, item) for argument, item in zip(arguments, plain, strict=True))
    if wanted is float and isinstance(plain, int) and not isinstance(plain, bool):
        return float(plain)
    if type(plain) is not wanted:
        raise ValueError(f"expected {wanted.__name__}, found {plain!r}")
    return plain


def _dataclass(wanted: type, plain: Any) -> Any:
    if not isinstance(plain, dict):
        raise ValueError(f"expected an object for {wanted.__name__}, found {plain!r}")
    hints = _hints(wanted)
    if unknown := plain.keys() - hints.keys():
        raise ValueError(f"{wanted.__name__} has no field {sorted(unknown)[0]!r}")
    values = {}
    for name, value in plain.items():
        try:
            values[name] = from_plain(hints[name], value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return wanted(**values)


@cache
def _hints(wanted: type) -> dict[str, Any]:
    written = {field.name: field.type for field in dataclasses.fields(wanted) if _is_written(field)}
    # of these alone: what is never written may be of a type that only a type checker imports
    holder = type(wanted.__name__, (), {"__annotations__": written, "__module__": wanted.__module__})
    return typing.get_type_hints(holder, localns={"Value": _AnyValue})


def _is_written(field: dataclasses.Field[Any]) -> bool:
    """Return whether a field goes to JSON: all do, unless their metadata says `written=False`."""
    return bool(field.metadata.get("written", True))


class _AnyValue:
    """Stands for the recursive `Value` of a plugin's option, whose lists are tuples."""
